"""Invertible 1x1 convolution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax.conv import conv1
from zmar_jax.flow.health import record

Array = jax.Array

INVERSE = "inverse"
"""Optional collection with W^-1 and log|det W|, as made once by `invert_weights`."""


class InvConv(nn.Module):
    """y = W x at every pixel, W [C, C]; logdet = H W log|det W| (SPEC section 4)."""

    @nn.compact
    def weight(self, width: int) -> Array:
        return self.param("weight", nn.initializers.orthogonal(), (width, width))

    def forward(self, x: Array, cond: Array | None = None) -> tuple[Array, Array]:
        weight = self.weight(x.shape[-1])
        logabsdet = jnp.linalg.slogdet(weight)[1]
        record(self, "logabsdet", logabsdet)
        return conv1(x, weight.T), _logdet(x, logabsdet)

    def inverse(self, y: Array, cond: Array | None = None) -> tuple[Array, Array]:
        weight = self.weight(y.shape[-1])
        if self.has_variable(INVERSE, "weight"):
            inverse = self.get_variable(INVERSE, "weight")
            logabsdet = self.get_variable(INVERSE, "logabsdet")
        else:
            inverse = jnp.linalg.inv(weight)
            logabsdet = jnp.linalg.slogdet(weight)[1]
        return conv1(y, inverse.T), -_logdet(y, logabsdet)


def invert_weights(params: dict[str, Any]) -> dict[str, Any]:
    """W^-1 and log|det W| of every invconv in `params`, computed in float64, kept in W's dtype.

    For restoring: `model.apply({"params": params, "inverse": invert_weights(params)}, ...)`
    spares each call the inversions and their float32 rounding.
    """
    out = {}
    leaves: dict[tuple[str, ...], Any] = flatten_dict(params)
    for path, leaf in leaves.items():
        if path[-2:] == ("invconv", "weight"):
            weight = np.asarray(leaf, np.float64)
            out[path] = jnp.asarray(np.linalg.inv(weight), leaf.dtype)
            logabsdet = np.linalg.slogdet(weight)[1]
            out[(*path[:-1], "logabsdet")] = jnp.asarray(logabsdet, leaf.dtype)
    return unflatten_dict(out)


def _logdet(x: Array, logabsdet: Array) -> Array:
    batch, height, width, _ = x.shape
    return jnp.full(batch, height * width * logabsdet)
