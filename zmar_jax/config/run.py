"""All that a run needs to know."""

import dataclasses

from zmar_jax.config.checks import require
from zmar_jax.config.data import DataConfig
from zmar_jax.config.model import ModelConfig
from zmar_jax.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Model, data and recipe; a file in `configs/` states what differs from the defaults."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self):
        batch, parts = self.data.batch_size, self.train.accumulate
        require(
            batch % parts == 0,
            f"data.batch_size {batch} must be a multiple of train.accumulate {parts}",
        )
