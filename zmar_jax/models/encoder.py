"""The ZMAR encoder and the conditions that it makes (SPEC sections 2 and 3)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.conv import conv1, conv3
from zmar_jax.flow import Composed
from zmar_jax.models.attention import Stage, conv_init
from zmar_jax.rows import WHOLE, Rows

Array = jax.Array


class Conv3(nn.Module):
    """3x3 convolution without bias; parameter `kernel`, HWIO."""

    features: int
    rows: Rows = WHOLE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, (3, 3, *shape))
        local = lambda wanted, x: (wanted.crop(conv3(x, kernel)), ())  # noqa: E731
        return self.rows.apply(local, x, halo=1, width=max(shape))[0]


class Conv1(nn.Module):
    """1x1 convolution without bias, whose parameter `kernel` [I, O] others may read."""

    shape: tuple[int, int]

    def setup(self):
        self.kernel = self.param("kernel", conv_init, self.shape)

    def __call__(self, x: Array) -> Array:
        return conv1(x, self.kernel)


class Encoder(nn.Module):
    """U-shaped encoder; levels 1 to 3 attend by the mask of lost pixels on the way down."""

    config: ModelConfig
    rows: Rows = WHOLE
    remat: bool = False

    def setup(self):
        self.reduce_chan2 = Conv1((2 * self.config.dim, 4 * self.config.dim))

    def conditions(self, features: Mapping[str, Array]) -> dict[str, Array]:
        """fea_up0, fea_up1 and fea_up2 (SPEC section 3) from what a call returns."""
        d2, f = jnp.split(features["d2_f"], 2, -1)
        fea_up2 = jnp.concatenate([self.reduce_chan2(d2), f], -1)
        return {"fea_up0": features["fea_up0"], "fea_up1": features["fea_up1"], "fea_up2": fea_up2}

    def composed(self, features: Mapping[str, Array]) -> dict[str, Array | Composed]:
        """The same for the flow, whose kernels take the matrix that makes fea_up2."""
        fea_up2 = Composed(features["d2_f"], self.reduce_chan2.kernel)
        return {"fea_up0": features["fea_up0"], "fea_up1": features["fea_up1"], "fea_up2": fea_up2}

    @nn.compact
    def __call__(self, lr: Array, mask: Array) -> dict[str, Array]:
        """What the flow's conditions are made of.

        Args:
          lr: log image [B, H, W, 3]; mask: [B, H, W, 1]; both from `ops.network_input`.
            H and W are multiples of 8 and at least 16.

        Returns:
          fea_up0, fea_up1: [B, H/8, W/8, 6 dim], [B, H/4, ...]; d2_f: [B, H/2, W/2, 4 dim], d2
          before its convolution to u2, and f. In the policy's dtype.

        Raises:
          ValueError: an impossible shape.
        """
        _check(lr, mask)
        cfg, dim = self.config, self.config.dim
        grid = cfg.mask_grid
        masks = ops.level_masks(mask, grid, cfg.mask_threshold)
        # the attention depends on the mask alone: once a level, not once a block
        attention = [ops.cell_attention(m, grid) if cfg.mask_attention else None for m in masks]
        n, heads = cfg.blocks, cfg.heads

        def stage(length: int, heads: int, name: str) -> Stage:
            return Stage(cfg, length, heads, self.rows, self.remat, name=name)

        def conv3(features: int, name: str) -> Conv3:
            return Conv3(features, self.rows, name=name)

        if self.rows.shares is not None:
            lr = self.rows.shares.take(lr)
        x = conv3(dim, "patch_embed")(ops.hidden_cast(lr, cfg.policy))
        e1 = stage(n[0], heads[0], "encoder_level1")(x, attention[0])
        x = ops.squeeze2(conv3(dim // 2, "down1_2")(e1))
        e2 = stage(n[1], heads[1], "encoder_level2")(x, attention[1])
        x = ops.squeeze2(conv3(dim, "down2_3")(e2))
        e3 = stage(n[2], heads[2], "encoder_level3")(x, attention[2])
        x = ops.squeeze2(conv3(2 * dim, "down3_4")(e3))
        latent = stage(n[3], heads[3], "latent")(x)

        x = ops.unsqueeze2(conv3(16 * dim, "up4_3")(latent))
        x = Conv1((8 * dim, 4 * dim), name="reduce_chan_level3")(jnp.concatenate([x, e3], -1))
        d3 = stage(n[2], heads[2], "decoder_level3")(x)
        x = ops.unsqueeze2(conv3(8 * dim, "up3_2")(d3))
        x = Conv1((4 * dim, 2 * dim), name="reduce_chan_level2")(jnp.concatenate([x, e2], -1))
        d2 = stage(n[1], heads[1], "decoder_level2")(x)
        x = ops.unsqueeze2(conv3(4 * dim, "up2_1")(d2))
        d1 = stage(n[0], heads[0], "decoder_level1")(jnp.concatenate([x, e1], -1))
        f = stage(cfg.refinement_blocks, heads[0], "refinement")(d1)

        u0 = Conv1((8 * dim, 4 * dim), name="reduce_chan0")(latent)
        parts = {"fea_up0": (u0, 8), "fea_up1": (d3, 4), "d2_f": (d2, 2)}
        return {
            name: jnp.concatenate([u, ops.shrink(f, factor)], -1)
            for name, (u, factor) in parts.items()
        }


def _check(lr: Array, mask: Array) -> None:
    _, height, width, c = lr.shape
    if c != 3 or mask.shape != (*lr.shape[:3], 1):
        raise ValueError(
            f"expected lr [B, H, W, 3], mask [B, H, W, 1]; got {lr.shape}, {mask.shape}"
        )
    if height % 8 or width % 8 or min(height, width) < 16:
        raise ValueError(
            f"height and width must be multiples of 8 and at least 16, got {height}x{width}; "
            "pad with ops.pad_to_multiple(x, 8)"
        )
