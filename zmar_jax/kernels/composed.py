"""A 1x1 convolution and a depthwise 3x3 one after it, which is linear and so one dense 3x3.

Dense it takes nine times the multiplications, all of them in matrix units. A TPU has these to
spare: shifted multiply-adds of bfloat16 arrays take two to three times as long there, by XLA's
estimate.
"""

import jax
from jax import lax

from zmar_jax.kernels import tpu
from zmar_jax.kernels.dense import conv1
from zmar_jax.kernels.depthwise import dw3
from zmar_jax.ops import HIGHEST, by_platform

Array = jax.Array

WIDEST = 192
"""Channels up to which one dense convolution is faster on a TPU, by XLA's estimate; wider ones were
not tried."""


def conv1_dw3(x: Array, kernel: Array, taps: Array) -> Array:
    """dw3(conv1(x)) without padding: [B, H+2, W+2, I], [I, O], [3, 3, 1, O] -> [B, H, W, O]."""
    dense = tpu.has_products_to_spare(x.dtype) and x.shape[-1] <= WIDEST
    forms = {"tpu": _dense} if dense else {}
    return by_platform(x, kernel, taps, **forms, default=_one_by_one)


def _one_by_one(x: Array, kernel: Array, taps: Array) -> Array:
    return dw3(conv1(x, kernel), taps)


def _dense(x: Array, kernel: Array, taps: Array) -> Array:
    composed = (kernel[None, None] * taps).astype(x.dtype)
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, composed, (1, 1), "VALID", dimension_numbers=numbers, precision=HIGHEST
    )
