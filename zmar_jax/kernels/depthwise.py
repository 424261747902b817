"""Depthwise 3x3 convolution. Kernels are [3, 3, 1, C]."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import ops
from zmar_jax.kernels.taps import taps

Array = jax.Array


@jax.custom_vjp
def dw3(x: Array, kernel: Array) -> Array:
    """Depthwise 3x3 convolution without padding: [B, H+2, W+2, C] with [3, 3, 1, C].

    Nine shifted multiply-adds that XLA fuses into one loop; `lax.conv` with
    `feature_group_count=C` is ten times slower on CPU.
    """
    return ops.by_platform(x, kernel, cpu=ops.in_float32(_dw3), default=_dw3)


def _dw3(x: Array, kernel: Array) -> Array:
    weights = kernel.astype(x.dtype).reshape(9, 1, 1, 1, -1)
    return functools.reduce(operator.add, map(operator.mul, taps(x), weights))


def _dw3_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dy = jnp.pad(dy, ((0, 0), (2, 2), (2, 2), (0, 0)))
    gradients = ops.by_platform(
        x, kernel[::-1, ::-1], dy, cpu=_dw3_gradients_cpu, default=_dw3_gradients
    )
    return gradients[0], gradients[1].reshape(kernel.shape).astype(kernel.dtype)


def _dw3_gradients(x: Array, reverse: Array, dy: Array) -> tuple[Array, Array]:
    """Gradients of x and, [9, C], of the kernel, from padded dy [B, H+4, W+4, C]."""
    products = [jnp.sum(x * tap, (0, 1, 2), dtype=ops.wide(x.dtype)) for tap in taps(dy)]
    return dw3(dy, reverse), jnp.stack(products[::-1])


def _dw3_gradients_cpu(x: Array, reverse: Array, dy: Array) -> tuple[Array, Array]:
    """The same in a loop over rows, before which XLA must finish dy.

    It would compute dy anew in each of ten loops otherwise, and no barrier stops it. Its sums over
    axes before the last are scalar code, so rows are added and columns multiplied with ones.
    """
    b, height, width, c = x.shape
    count = math.ceil(height / 16)
    rows = math.ceil(height / count)
    ones = jnp.ones((1, b * width), ops.wide(x.dtype))

    def product(x: Array, tap: Array) -> Array:
        rows_of = (a.astype(ones.dtype).swapaxes(0, 1) for a in (x, tap))
        summed = functools.reduce(operator.add, map(operator.mul, *rows_of))
        return jnp.matmul(ones, summed.reshape(-1, c), precision=ops.HIGHEST)

    def step(done: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        dx, total = done
        start = jnp.minimum(i * rows, height - rows)
        mine = lax.dynamic_slice_in_dim(x, start, rows, axis=1)
        near = lax.dynamic_slice_in_dim(dy, start, rows + 2, axis=1)
        dx = lax.dynamic_update_slice_in_dim(dx, dw3(near, reverse), start, axis=1)
        if height % count:  # the last rows overlap those before
            fresh = (start + jnp.arange(rows) >= i * rows).reshape(1, -1, 1, 1)
            mine = jnp.where(fresh, mine, 0)
        products = [product(mine, tap) for tap in taps(near)]
        return (dx, total + jnp.concatenate(products[::-1])), None

    zeros = jnp.zeros_like(x), jnp.zeros((9, c), ones.dtype)
    return lax.scan(step, zeros, jnp.arange(count))[0]


dw3.defvjp(lambda x, kernel: (dw3(x, kernel), (x, kernel)), _dw3_bwd)
