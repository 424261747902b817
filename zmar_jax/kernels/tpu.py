"""Float32 convolutions in the forms that the TPU compiler takes well.

A TPU multiplies bfloat16. For a float32 product at HIGHEST precision XLA splits both factors into
three bfloat16 parts and adds the six larger of their nine products. Inside a convolution that is
slow to compile (8 s for 6 -> 128 channels at 80x80, 30 s for its weight gradient), and with few
channels it leaves most of the matrix unit idle six times. Written out here, the parts are channels
of one bfloat16 convolution: the same sum, a third of the seconds to compile, half the cycles by
XLA's estimate. With many channels the parts are memory traffic, and XLA's own form is better.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax.kernels.taps import correlate

Array = jax.Array

_NARROW = 32


def has_products_to_spare(dtype: Any) -> bool:
    """Whether products of this dtype are so cheap that more of them are worth fewer passes.

    Of bfloat16: float32 products take six times as many.
    """
    return dtype == jnp.bfloat16


def narrow(channels: int, dtype: Any) -> bool:
    """Whether float32 convolutions of so few channels are better written out."""
    return dtype == jnp.float32 and channels <= _NARROW


def conv3(x: Array, kernel: Array) -> Array:
    """3x3 convolution, zero padding 1: float32 [B, H, W, I] with [3, 3, I, O] -> [B, H, W, O]."""
    (a, b, c), (p, q, r) = _parts(x), _parts(kernel)
    return lax.conv_general_dilated(
        jnp.concatenate([a, a, b, b, a, c], -1),
        jnp.concatenate([p, q, p, q, r, p], 2),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.float32,
    )


def conv3_weight_gradient(x: Array, dy: Array) -> Array:
    """Gradient of a conv3's kernel: padded x [B, H+2, W+2, I], dy [B, H, W, O] -> [3, 3, I, O]."""
    width, outputs = x.shape[-1], dy.shape[-1]
    if not narrow(min(width, outputs), x.dtype):
        return correlate(x, dy, precision=lax.Precision.HIGHEST)
    x, dy = (jnp.concatenate(_parts(a), -1) for a in (x, dy))
    products = correlate(x, dy, preferred_element_type=jnp.float32)
    products = products.reshape(3, 3, 3, width, 3, outputs)
    largest = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
    return sum((products[:, :, i, :, j] for i, j in reversed(largest)), jnp.float32(0))


def _parts(x: Array) -> list[Array]:
    """Three bfloat16 arrays whose sum is float32 x, from the largest to the smallest."""
    parts = []
    for _ in range(3):
        # XLA may drop a conversion there and back, but not this
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts
