"""3x3 convolutions with half the multiplications: Winograd's F(4, 3) along the rows.

Four rows of the result are a product of polynomials in their position, and the product of two
polynomials is known from its values at six points: 6 convolutions of 1x3 in place of 12
(Lavin and Gray, 2015, https://arxiv.org/abs/1509.09308). The points 0, +-sqrt(1/2), +-sqrt(2) and
infinity round half as much as the usual 0, +-1, +-2: on random numbers twice what the convolution
itself does. Columns are left as they are: their transforms would cost more than they save.
"""

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zmar_jax.ops import HIGHEST, surely

Array = jax.Array

ROWS = 4
"""Of the result that are computed at once, from two more of the input."""
P, Q = math.sqrt(0.5), math.sqrt(2)
"""The points, with 0, -P, -Q and infinity."""
INPUT = np.array(
    [
        [1, 0, -2.5, 0, 1, 0],
        [0, -Q, -2, P, 1, 0],
        [0, Q, -2, -P, 1, 0],
        [0, -P, -0.5, Q, 1, 0],
        [0, P, -0.5, -Q, 1, 0],
        [0, 1, 0, -2.5, 0, 1],
    ]
)
"""From six rows of the input to values at the points, [6, 6]."""
KERNEL = np.array(
    [
        [1, 0, 0],
        [-2 / 3, -2 / 3 * P, -1 / 3],
        [-2 / 3, 2 / 3 * P, -1 / 3],
        [1 / 6, Q / 6, 1 / 3],
        [1 / 6, -Q / 6, 1 / 3],
        [0, 0, 1],
    ]
)
"""From three rows of a kernel to its values there, [6, 3]."""
OUTPUT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, P, -P, Q, -Q, 0],
        [0, 0.5, 0.5, 2, 2, 0],
        [0, P / 2, -P / 2, 2 * Q, -2 * Q, 1],
    ]
)
"""From the products there to four rows of the result, [4, 6]."""


def worthwhile(x: Array) -> bool:
    """Whether convolutions of x [B, H, W, C] are faster so: they have products to save.

    With few pixels the kernel's transform costs more. An unknown size counts as few.
    """
    b, h, w, channels = x.shape
    return channels >= 16 and surely(lambda: b * h * w >= 1000)


def conv3(x: Array, kernel: Array) -> Array:
    """3x3 convolution, zero padding 1: [B, H, W, I] with [3, 3, I, O] -> [B, H, W, O].

    Both in float32 or float64; the rounding of the transforms is too much for bfloat16.
    """
    b, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + -h % ROWS), (0, 0), (0, 0)))
    kernels = [_sum(weights, list(kernel))[None] for weights in KERNEL]
    values = [
        lax.conv_general_dilated(
            value, at_point, (1, 1), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=HIGHEST,
        )
        for value, at_point in zip(_input(x), kernels, strict=True)
    ]  # fmt: skip
    rows = [_sum(weights, values) for weights in OUTPUT]
    return jnp.stack(rows, 2).reshape(b, -1, w, kernel.shape[-1])[:, :h]


def conv3_weight_gradient(x: Array, dy: Array) -> Array:
    """The kernel's gradient [3, 3, I, O], from padded x [B, H+2, W+2, I] and dy [B, H, W, O]."""
    _, h, w, _ = dy.shape
    pad = ((0, 0), (0, -h % ROWS), (0, 0), (0, 0))
    x, dy = jnp.pad(x, pad), jnp.pad(dy, pad)
    dvalues = [_sum(weights, _rows(dy, ROWS)) for weights in OUTPUT.T]

    def product(value: Array, dvalue: Array) -> Array:
        value, dvalue = (a.reshape(-1, a.shape[-1]) for a in (value, dvalue))
        return jnp.matmul(value.T, dvalue, precision=HIGHEST)

    dkernels = [
        jnp.stack([product(value[:, :, j : j + w], dvalue) for j in range(3)])
        for value, dvalue in zip(_input(x), dvalues, strict=True)
    ]
    return jnp.stack([_sum(weights, dkernels) for weights in KERNEL.T])


def _input(x: Array) -> list[Array]:
    """Values at the points, [B, H/4, W, C] each, of x [B, H+2, W, C]."""
    rows = _rows(x, ROWS + 2)
    return [_sum(weights, rows) for weights in INPUT]


def _rows(x: Array, count: int) -> list[Array]:
    """The first row of each four, the second, ..., `count` of them: [B, H/4, W, C] each."""
    last = x.shape[1] - count
    return [x[:, i : i + last + 1 : ROWS] for i in range(count)]


def _sum(weights: Sequence[float] | np.ndarray, arrays: Sequence[Array]) -> Array:
    """Weighted; of those whose weight is not 0."""
    terms = [a if w == 1 else a * float(w) for w, a in zip(weights, arrays, strict=True) if w]
    return functools.reduce(operator.add, terms)
