"""The ZMAR encoder and the conditions that it makes (model.md sections 2 and 3)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.config import Kernels, ModelConfig
from zmar_jax.flow import Factored
from zmar_jax.flow.initializers import FanIn
from zmar_jax.kernels import conv1, conv3
from zmar_jax.models.attention import Stage
from zmar_jax.tiling.rows import WHOLE, Rows

Array = jax.Array


class Conv3(nn.Module):
    """3x3 convolution without bias; parameter `kernel`, HWIO."""

    features: int
    rows: Rows = WHOLE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", FanIn(), (3, 3, *shape))
        local = lambda window, x: (window.crop(conv3(x, kernel)), ())  # noqa: E731
        return self.rows.apply(local, x, halo=1, width=max(shape))[0]


class Conv1(nn.Module):
    """1x1 convolution without bias, whose parameter `kernel` [I, O] others may read."""

    shape: tuple[int, int]

    def setup(self) -> None:
        self.kernel: Array = self.param("kernel", FanIn(), self.shape)

    def __call__(self, x: Array) -> Array:
        return conv1(x, self.kernel)


class Encoder(nn.Module):
    """U-shaped encoder; its levels attend by the mask of lost pixels on the way down.

    The flow's conditions come from latent and the decoder's levels: u of the coarsest is number 0.
    """

    config: ModelConfig
    rows: Rows = WHOLE
    remat: bool = False
    kernels: Kernels = "xla"

    def setup(self) -> None:
        # the finest condition's convolution, which makes more channels: see `factored`
        name = f"reduce_chan{self.config.levels - 1}"
        self.widen: Conv1 = Conv1((2 * self.config.dim, 4 * self.config.dim), name=name)

    def conditions(self, features: Mapping[str, Array]) -> dict[str, Array]:
        """fea_up0, fea_up1, ... (model.md section 3) from what a call returns."""
        d2, f = jnp.split(features["d2_f"], 2, -1)
        return self._with_finest(features, jnp.concatenate([self.widen(d2), f], -1))

    def factored(self, features: Mapping[str, Array]) -> dict[str, Any]:
        """The same for the flow, whose kernels take the matrix that makes the finest."""
        return self._with_finest(features, Factored(features["d2_f"], self.widen.kernel))

    def _with_finest(self, features: Mapping[str, Array], finest: Any) -> dict[str, Any]:
        others = {name: array for name, array in features.items() if name != "d2_f"}
        return others | {f"fea_up{self.config.levels - 1}": finest}

    @nn.compact
    def __call__(self, lr: Array, mask: Array) -> dict[str, Array]:
        """What the flow's conditions are made of.

        Args:
          lr: log image [B, H, W, 3]; mask: [B, H, W, 1]; both from `ops.network_input`.
            H and W are multiples of the stride and at least `smallest` (`ModelConfig`).

        Returns:
          fea_up0, fea_up1, ...: [B, H/s, W/s, 6 dim], s from the stride to 4; d2_f: [B, H/2, W/2,
          4 dim], d2 before its convolution to the finest u, and f. In the policy's dtype.

        Raises:
          ValueError: an impossible shape.
        """
        cfg, levels = self.config, range(1, self.config.levels + 1)
        _check(lr, mask, cfg)
        masks = ops.level_masks(mask, cfg.levels, cfg.mask_grid, cfg.mask_threshold)
        if self.rows.shares is not None:
            lr = self.rows.shares.take(lr)
        x, skips = self._conv3("patch_embed", cfg.dim)(ops.hidden_cast(lr, cfg.policy)), {}
        for level, m in zip(levels, masks, strict=True):
            # the attention depends on the mask alone: once a level, not once a block
            attention = ops.cell_attention(m, cfg.mask_grid) if cfg.mask_attention else None
            skips[level] = self._stage(f"encoder_level{level}", level)(x, attention)
            down = self._conv3(f"down{level}_{level + 1}", cfg.width(level) // 2)
            x = ops.squeeze2(down(skips[level]))
        x = self._stage("latent", cfg.levels + 1)(x)

        sources = [x]  # of the conditions, from the coarsest
        for level in reversed(levels):
            width = cfg.width(level)
            x = ops.unsqueeze2(self._conv3(f"up{level + 1}_{level}", 4 * width)(x))
            x = jnp.concatenate([x, skips[level]], -1)
            if level > 1:
                x = Conv1((2 * width, width), name=f"reduce_chan_level{level}")(x)
            x = self._stage(f"decoder_level{level}", level)(x)
            sources.append(x)
        f = self._stage("refinement", 1, cfg.refinement_blocks)(x)
        return self._features(sources[:-1], f)

    def _features(self, sources: list[Array], f: Array) -> dict[str, Array]:
        """Each source with 4 dim channels, the finest as it is, beside f of its size."""
        cfg, features = self.config, {}
        for i, u in enumerate(sources):
            finest = i == len(sources) - 1
            if not finest and u.shape[-1] != 4 * cfg.dim:
                u = Conv1((u.shape[-1], 4 * cfg.dim), name=f"reduce_chan{i}")(u)
            name = "d2_f" if finest else f"fea_up{i}"
            features[name] = jnp.concatenate([u, ops.shrink(f, cfg.stride >> i)], -1)
        return features

    def _stage(self, name: str, level: int, length: int | None = None) -> Stage:
        cfg = self.config
        length = cfg.blocks[level - 1] if length is None else length
        heads = cfg.heads[level - 1]
        return Stage(cfg, length, heads, self.rows, self.remat, self.kernels, name=name)

    def _conv3(self, name: str, features: int) -> Conv3:
        return Conv3(features, self.rows, name=name)


def _check(lr: Array, mask: Array, config: ModelConfig) -> None:
    _, height, width, c = lr.shape
    if c != 3 or mask.shape != (*lr.shape[:3], 1):
        raise ValueError(
            f"expected lr [B, H, W, 3], mask [B, H, W, 1]; got {lr.shape}, {mask.shape}"
        )
    stride, least = config.stride, config.smallest
    # each by itself: of sizes that are not known yet (jax.export) none is the lesser
    if height % stride or width % stride or height < least or width < least:
        raise ValueError(
            f"height and width must be multiples of {stride} and at least {least}, got "
            f"{height}x{width}; pad with ops.pad_to_multiple(x, {stride})"
        )
