"""The strengthened normalizing flow (model.md section 4)."""

import functools
from collections.abc import Callable, Mapping

import jax
from flax import linen as nn

from zmar_jax.config import ModelConfig, Remat
from zmar_jax.flow import Factored, FlowLevel
from zmar_jax.flow.bijection import chain
from zmar_jax.tiling.rows import WHOLE, Rows

Array = jax.Array

Conditions = Mapping[str, Array | Factored]
"""fea_up0, fea_up1, ..., from the coarsest (model.md section 3)."""


class SNFlow(nn.Module):
    """The levels, no splits: [B, H, W, 3] <-> [B, *latent_shape], always float32."""

    config: ModelConfig
    remat: Remat = "none"
    rows: Rows = WHOLE

    def setup(self) -> None:
        self.levels: list[FlowLevel] = [
            FlowLevel(self.config, self.remat, self.rows, name=f"level{level}")
            for level in range(1, self.config.levels + 1)
        ]

    def forward(self, x: Array, conditions: Conditions) -> tuple[Array, Array]:
        """Image -> latent; returns (z, logdet [B] in nats)."""
        return chain(self._all("forward"), x, conditions)

    def inverse(self, z: Array, conditions: Conditions) -> tuple[Array, Array]:
        """Latent -> image; returns (x, logdet [B] in nats)."""
        return chain(self._all("inverse")[::-1], z, conditions)

    def _all(self, direction: str) -> list[Callable[..., tuple[Array, Array]]]:
        """This direction of each level, under its own condition: the finest level has the last."""

        def of(i: int, x: Array, conditions: Conditions) -> tuple[Array, Array]:
            condition = conditions[f"fea_up{self.config.levels - 1 - i}"]
            return getattr(self.levels[i], direction)(x, condition)

        return [functools.partial(of, i) for i in range(self.config.levels)]
