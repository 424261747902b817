"""Squeeze: space into channels, a bijection without parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.flow.bijection import Bijection

Array = jax.Array


class Squeeze(Bijection, nn.Module):
    """[B, H, W, C] <-> [B, H/2, W/2, 4C]; logdet 0 (model.md section 4)."""

    halo, cond_halo = 1, None

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        y = ops.squeeze2(x)
        return y, jnp.zeros(y.shape[:2], ops.wide(x.dtype))

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        return ops.unsqueeze2(y), jnp.zeros(y.shape[:2], ops.wide(y.dtype))
