"""What a flow's forward pass tells about how near it is to collapse."""

import jax
from flax import linen as nn

HEALTH = "health"
"""Collection that, when mutable, receives every invconv's log|det W| (`logabsdet`) and every
coupling net's smallest scale in each example, [B] (`scale`), of the last pass."""


def record(module: nn.Module, name: str, value: jax.Array) -> None:
    """Puts `value` into HEALTH where the caller asked for it."""
    if module.is_mutable_collection(HEALTH) and not module.is_initializing():
        module.put_variable(HEALTH, name, jax.lax.stop_gradient(value))
