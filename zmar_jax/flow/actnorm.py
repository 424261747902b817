"""Actnorm: a scale and a bias per channel, set from the first batch."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax import ops
from zmar_jax.flow.bijection import Bijection
from zmar_jax.flow.initializers import zeros

Array = jax.Array

ACTNORM_INIT = "actnorm_init"
"""Collection that, when mutable, makes every actnorm normalise the batch and record how."""


class ActNorm(Bijection, nn.Module):
    """y = (x + bias) * exp(logs); logdet = H W sum(logs) (model.md section 4)."""

    eps: float = 1e-6

    halo, cond_halo = 0, None

    @nn.compact
    def bias_and_logs(self, x: Array, data_dependent: bool = False) -> tuple[Array, Array]:
        """The parameters, [C] each; from x's own statistics while they are being initialised."""
        width = x.shape[-1]
        bias = self.param("bias", zeros, (width,))
        logs = self.param("logs", zeros, (width,))
        if data_dependent and self.is_mutable_collection(ACTNORM_INIT):
            keep = jnp.any(bias != 0)
            wide = x.astype(ops.wide(x.dtype))
            mean, std = wide.mean((0, 1, 2)), wide.std((0, 1, 2))
            bias = jnp.where(keep, bias, -mean)
            logs = jnp.where(keep, logs, -jnp.log(std + self.eps))
            self.put_variable(ACTNORM_INIT, "bias", bias)
            self.put_variable(ACTNORM_INIT, "logs", logs)
        return bias, logs

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        bias, logs = self.bias_and_logs(x, data_dependent=True)
        y = (x + ops.channels(bias).astype(x.dtype)) * ops.channels(jnp.exp(logs)).astype(x.dtype)
        return y, _logdet(x, logs)

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        bias, logs = self.bias_and_logs(y)
        return y * ops.channels(jnp.exp(-logs)) - ops.channels(bias), -_logdet(y, logs)


def _logdet(x: Array, logs: Array) -> Array:
    return jnp.full(x.shape[:2], x.shape[2] * logs.sum())


def init_actnorm(
    model: nn.Module, params: Any, gt: Array, lr: Array, mask: Array, noise: Array
) -> Any:
    """Sets every actnorm from a batch, layer after layer, in one forward pass (model.md section 4).

    A layer whose bias is already non-zero keeps its values. Under `jit` with a sharded batch
    the statistics are those of the global batch.

    Args:
      model: a module with the method `nll(gt, lr, mask, noise)`; params: its parameters.

    Returns:
      params with new actnorm values, otherwise unchanged.
    """
    _, updated = model.apply(
        {"params": params}, gt, lr, mask, noise, method="nll", mutable=[ACTNORM_INIT]
    )
    values = flatten_dict(params) | flatten_dict(updated[ACTNORM_INIT])
    return unflatten_dict(values)
