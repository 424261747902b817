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

    def __post_init__(self) -> None:
        batch, parts = self.data.batch_size, self.train.accumulate
        require(
            batch % parts == 0,
            f"data.batch_size {batch} must be a multiple of train.accumulate {parts}",
        )
        stride, crop = self.model.stride, self.data.crop
        require(crop % stride == 0, f"data.crop must be a multiple of {stride}, got {crop}")
        require(
            crop >= self.model.smallest,
            f"data.crop must be at least {self.model.smallest}, got {crop}",
        )


def without_places(config: Config) -> Config:
    """The configuration without the places of its pictures, masks and first weights. Those are
    compared by their content, as they may be named by another path, or be moved."""
    data = config.data
    drawn = data.masks.source in ("procedural", "none")
    masks = data.masks if drawn else dataclasses.replace(data.masks, source="folder")
    folders = {
        name: getattr(data, name) and "folder" for name in ("folder", "val_folder", "gt_folder")
    }
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, masks=masks, **folders),
        train=dataclasses.replace(config.train, init=config.train.init and "weights"),
    )
