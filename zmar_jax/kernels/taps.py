"""A 3x3 convolution as nine shifted views of its padded input."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def pad1(x: Array) -> Array:
    """One zero pixel around [B, H, W, C]."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def taps(x: Array) -> list[Array]:
    """The nine shifted views of padded x, in the order of a kernel's rows and columns."""
    _, h, w, _ = x.shape
    return [x[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3)]


def correlate(x: Array, dy: Array, **kwargs: Any) -> Array:
    """What each of the nine views of padded x [B, H+2, W+2, I] has in common with dy [B, H, W, O].

    As one convolution: [3, 3, I, O], the gradient of a 3x3 kernel. `kwargs` are the convolution's.
    """
    numbers = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))
    return lax.conv_general_dilated(x, dy, (1, 1), "VALID", dimension_numbers=numbers, **kwargs)
