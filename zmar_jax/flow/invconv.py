"""Invertible 1x1 convolution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax.flow.bijection import Bijection
from zmar_jax.flow.health import record
from zmar_jax.flow.initializers import Orthogonal
from zmar_jax.kernels import conv1

Array = jax.Array

INVERSE = "inverse"
"""Optional collection with W^-1 and log|det W|, as made once by `invert_weights`."""


class InvConv(Bijection, nn.Module):
    """y = W x at every pixel, W [C, C]; logdet = H W log|det W| (model.md section 4)."""

    halo, cond_halo = 0, None

    @nn.compact
    def weight(self, width: int) -> Array:
        return self.param("weight", Orthogonal(), (width, width))

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        weight = self.weight(x.shape[-1])
        logabsdet = jnp.linalg.slogdet(weight)[1]
        record(self, "logabsdet", logabsdet)
        return conv1(x, weight.T), _logdet(x, logabsdet)

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
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
    return jnp.full(x.shape[:2], x.shape[2] * logabsdet)
