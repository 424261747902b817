"""A 3x3 convolution as nine shifted views of its padded input."""

import jax
import jax.numpy as jnp

Array = jax.Array


def pad1(x: Array) -> Array:
    """One zero pixel around [B, H, W, C]."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def taps(x: Array) -> list[Array]:
    """The nine shifted views of padded x, in the order of a kernel's rows and columns."""
    _, h, w, _ = x.shape
    return [x[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3)]
