"""The feed-forward pass of a block as one TPU kernel, and its gradient as another.

For the kernels arrays are [H, W, B, C], which is how XLA for TPUs lays out the encoder's
[B, H, W, C] by itself: no copy is made. B is filled up to IMAGES and the hidden channels to LANES;
what fills has no gradient.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zmar_jax.kernels.pallas import backward, forward, parts
from zmar_jax.kernels.pallas.parts import IMAGES, LANES

Array = jax.Array

INTERPRETED = False
"""Whether models interpret the kernels on whatever device there is; for tests."""
Weights = tuple[Array, Array, Array, Array, Array]
"""LayerNorm's scale and bias, [1, 1, C]; conv1 [C, 2 F]; taps [9, 1, 1, 2 F]; conv1 [F, C]."""


def feed_forward(
    x: Array,
    scale: Array,
    bias: Array,
    project_in: Array,
    taps: Array,
    project_out: Array,
    eps: float,
    interpret: bool = False,
) -> Array:
    """x + conv1(gelu(a) b), where a, b = split2(dw3(conv1(LN(x)))) (model.md section 2).

    Products take numbers of the dtype of x, everything else is float32.

    Args:
      x: [B, H, W, C], float32 or bfloat16.
      scale, bias: [C], of the LayerNorm.
      project_in: [C, 2 F]; taps: [3, 3, 1, 2 F]; project_out: [F, C].
      interpret: runs anywhere, slowly, for tests; else only a TPU can.

    Returns:
      [B, H, W, C] of the dtype of x.
    """
    images, hidden = x.shape[0], project_out.shape[0]
    more = [(0, -hidden % LANES)]

    def filled(a: Array) -> Array:
        """Both halves of the hidden channels, each with zeros after it."""
        pad = [(0, 0)] * (a.ndim - 1) + more
        return jnp.concatenate([jnp.pad(h, pad) for h in jnp.split(a, 2, -1)], -1)

    weights = (
        scale.reshape(1, 1, -1),
        bias.reshape(1, 1, -1),
        filled(project_in).astype(x.dtype),
        filled(taps).reshape(9, 1, 1, -1),
        jnp.pad(project_out, [*more, (0, 0)]).astype(x.dtype),
    )
    x = jnp.pad(x, [(0, -images % IMAGES)] + [(0, 0)] * 3)
    y: Any = _feed_forward(eps, interpret, x.transpose(1, 2, 0, 3), weights)
    return y.transpose(2, 0, 1, 3)[:images]


def vmem_bytes(width: int, channels: int, hidden: int) -> int:
    """What the gradient's kernel may take of a core's VMEM: the more of the two."""
    half, lanes = (n + -n % LANES for n in (hidden, channels))
    row = (math.prod(parts.columns(width)) + 2) * IMAGES * 4
    scratch = row * (6 * 2 + 3) * half
    # each twice: one is on its way while the other is worked on
    blocks = 2 * (5 * row * lanes + 4 * (2 * 2 + 1 + 2 + 1) * lanes * half)
    # what does not fit the registers: a row of all hidden channels, one of x
    values = row * (2 * 2 * half + 4 * lanes)
    return scratch + blocks + values


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _feed_forward(eps: float, interpret: bool, x: Array, weights: Weights) -> Array:
    height, width, _, channels = x.shape
    ring, columns, half = _ring(x, weights)
    run = _call(
        functools.partial(forward.kernel, height=height, eps=eps),
        x,
        height + 1,
        inputs=[_row(x, 0), _row(x, 1), *map(_whole, weights)],
        outputs=[(_row(x, 1), x)],
        scratch=[ring, (columns, IMAGES, half)],
        vmem=vmem_bytes(width, channels, half),
        interpret=interpret,
    )
    return run(x, x, *weights)[0]


def _forward(eps: float, interpret: bool, x: Array, weights: Weights) -> tuple[Array, Any]:
    return _feed_forward(eps, interpret, x, weights), (x, weights)


def _backward(eps: float, interpret: bool, kept: Any, dy: Array) -> tuple[Array, Weights]:
    x, weights = kept
    scale, bias, into, taps, back = weights
    height, channels = x.shape[0], x.shape[-1]
    ring, columns, half = _ring(x, weights)
    given = (scale, bias, into, into.T, taps, back.T)
    sums = [(IMAGES, channels)] * 2 + [into.shape, (9, IMAGES, 2 * half), (channels, half)]
    totals = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums]
    run = _call(
        functools.partial(backward.kernel, height=height, eps=eps),
        x,
        height + 2,
        inputs=[_row(x, 0), _row(x, 2), _row(x, 1), _row(x, 2), *map(_whole, given)],
        outputs=[(_row(x, 2), x), *((_whole(total), total) for total in totals)],
        scratch=[ring, ring, (columns, IMAGES, half), (columns, IMAGES, 2 * half)],
        vmem=vmem_bytes(x.shape[1], channels, half),
        interpret=interpret,
    )
    dx, dscale, dbias, dinto, dtaps, dback_t = run(x, x, dy, dy, *given)
    dscale, dbias = (d.sum(0).reshape(1, 1, -1) for d in (dscale, dbias))
    gradients = dscale, dbias, dinto, dtaps.sum(1).reshape(taps.shape), dback_t.T
    dweights = tuple(d.astype(w.dtype) for d, w in zip(gradients, weights, strict=True))
    return dx, dweights  # pyright: ignore[reportReturnType]


_feed_forward.defvjp(_forward, _backward)


def _ring(x: Array, weights: Weights) -> tuple[tuple[int, ...], int, int]:
    """Shape of a `Ring` of the hidden channels; its columns without the ends; half its channels."""
    columns, half = math.prod(parts.columns(x.shape[1])), weights[-1].shape[0]
    return (3, columns + 2, IMAGES, 2 * half), columns, half


def _row(x: Array, behind: int) -> pl.BlockSpec:
    """A row of IMAGES images of [H, W, B, C]: that of the step, or so many rows behind it."""
    height, width, _, channels = x.shape
    return pl.BlockSpec(
        (1, width, IMAGES, channels),
        lambda group, step: (jnp.clip(step - behind, 0, height - 1), 0, group, 0),
    )


def _whole(array: Any) -> pl.BlockSpec:
    """All of an array, which stays in VMEM."""
    return pl.BlockSpec(array.shape, lambda group, step: (0,) * len(array.shape))


def _call(
    kernel: Any,
    x: Array,
    steps: int,
    inputs: list[Any],
    outputs: list[Any],
    scratch: list[tuple[int, ...]],
    vmem: int,
    interpret: bool,
) -> Any:
    specs, arrays = zip(*outputs, strict=True)
    return pl.pallas_call(
        kernel,
        grid=(x.shape[2] // IMAGES, steps),
        in_specs=inputs,
        out_specs=list(specs),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=vmem
        ),
        interpret=interpret,
    )
