"""The strengthened normalizing flow (SPEC section 4)."""

from collections.abc import Mapping

import jax
from flax import linen as nn

from zmar_jax.config import ModelConfig, Remat
from zmar_jax.flow import Composed, FlowLevel
from zmar_jax.rows import WHOLE, Rows

Array = jax.Array

Conditions = Mapping[str, Array | Composed]
"""fea_up0, fea_up1 and fea_up2 (SPEC section 3)."""


class SNFlow(nn.Module):
    """Three levels, no splits: [B, H, W, 3] <-> [B, H/8, W/8, 192], always float32."""

    config: ModelConfig
    remat: Remat = "none"
    rows: Rows = WHOLE

    def setup(self):
        levels = (FlowLevel(self.config, self.remat, self.rows) for _ in range(3))
        self.level1, self.level2, self.level3 = levels

    def forward(self, x: Array, conditions: Conditions) -> tuple[Array, Array]:
        """Image -> latent; returns (z, logdet [B] in nats)."""
        x, logdet1 = self.level1.forward(x, conditions["fea_up2"])
        x, logdet2 = self.level2.forward(x, conditions["fea_up1"])
        z, logdet3 = self.level3.forward(x, conditions["fea_up0"])
        return z, logdet1 + logdet2 + logdet3

    def inverse(self, z: Array, conditions: Conditions) -> tuple[Array, Array]:
        """Latent -> image; returns (x, logdet [B] in nats)."""
        x, logdet3 = self.level3.inverse(z, conditions["fea_up0"])
        x, logdet2 = self.level2.inverse(x, conditions["fea_up1"])
        x, logdet1 = self.level1.inverse(x, conditions["fea_up2"])
        return x, logdet1 + logdet2 + logdet3
