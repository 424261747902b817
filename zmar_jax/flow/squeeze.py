"""Squeeze: space into channels, a bijection without parameters."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops

Array = jax.Array


class Squeeze(nn.Module):
    """[B, H, W, C] <-> [B, H/2, W/2, 4C]; logdet 0 (SPEC section 4)."""

    def forward(self, x: Array, cond: Array | None = None) -> tuple[Array, Array]:
        return ops.squeeze2(x), jnp.zeros(x.shape[0], ops.wide(x.dtype))

    def inverse(self, y: Array, cond: Array | None = None) -> tuple[Array, Array]:
        return ops.unsqueeze2(y), jnp.zeros(y.shape[0], ops.wide(y.dtype))
