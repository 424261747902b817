"""The ZMAR encoder in PyTorch, computed as the release does; see `torch_model.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

GRID = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What differs between presets; the fields are `zmar_jax.ModelConfig`'s."""

    dim: int
    blocks: tuple[int, int, int, int]
    refinement_blocks: int
    heads: tuple[int, int, int, int]
    ffn_expansion: float
    flow_additional_steps: int
    flow_steps: int
    flow_hidden: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sizes":
        """From `dataclasses.asdict(ModelConfig(...))`: importing zmar_jax would import JAX."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})


def conv(c_in: int, c_out: int, size: int, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=bias, groups=groups)


def resize(x: Tensor, factor: int) -> Tensor:
    size = (x.shape[2] // factor, x.shape[3] // factor)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def pad(x: Tensor) -> Tensor:
    """Reflected at the bottom and right to multiples of the grid."""
    return F.pad(x, (0, -x.shape[3] % GRID, 0, -x.shape[2] % GRID), mode="reflect")


def cells(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, cells, C * pixels of a cell]."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, GRID, h // GRID, GRID, w // GRID)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, GRID * GRID, -1)


def uncells(x: Tensor, shape: torch.Size) -> Tensor:
    b, c, h, w = shape
    x = x.reshape(b, GRID, GRID, c, h // GRID, w // GRID)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(shape)


class Affine(nn.Module):
    """LayerNorm over the channels; named for the key `norm1.body.weight`."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ZMA(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1 = Affine(width)  # never used
        self.qkv = conv(width, 3 * width, 1)
        self.qkv_dwconv = conv(3 * width, 3 * width, 3)
        self.project_out = conv(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[2:]
        v = self.qkv_dwconv(self.qkv(pad(x))).chunk(3, 1)[2]
        m = F.normalize(cells(mask), dim=-1, eps=1e-12)
        attention = (m @ m.mT).softmax(-1)
        mixed = uncells(attention @ cells(v), v.shape)
        return self.project_out(mixed)[:, :, :height, :width]


class MDTA(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv(width, 3 * width, 1)
        self.qkv_dwconv = conv(3 * width, 3 * width, 3, groups=3 * width)
        self.project_out = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        heads = self.temperature.shape[0]
        qkv = self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        q, k, v = (a.reshape(b, heads, c // heads, h * w) for a in qkv)
        q, k = (F.normalize(a, dim=-1, eps=1e-12) for a in (q, k))
        attention = (q @ k.mT * self.temperature).softmax(-1)
        return self.project_out((attention @ v).reshape(b, c, h, w))


class SharedAttention(nn.Module):
    """Published, never used."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.temperature_5 = nn.Parameter(torch.ones(heads, 1, 1, 1))
        self.temperature_4 = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv(width, 3 * width, 1)
        self.qkv_dwconv = conv(3 * width, 3 * width, 3, groups=3 * width)
        self.project_out = conv(width, width, 1)
        self.share_out = conv(width, width, 1)


class GDFN(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.project_in = conv(width, 2 * hidden, 1)
        self.dwconv = conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.project_out = conv(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(a) * b)


class Block(nn.Module):
    def __init__(self, sizes: Sizes, width: int, heads: int):
        super().__init__()
        self.norm1 = Affine(width)
        self.attn = MDTA(width, heads)
        self.norm2 = Affine(width)
        self.ffn = GDFN(width, int(width * sizes.ffn_expansion))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class MaskedBlock(Block):
    def __init__(self, sizes: Sizes, width: int, heads: int):
        super().__init__(sizes, width, heads)
        self.mask = ZMA(width)
        self.attn_share = SharedAttention(width, heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x + self.mask(self.norm1(x), mask))


class MaskedStage(nn.Module):
    def __init__(self, sizes: Sizes, length: int, width: int, heads: int):
        super().__init__()
        self.layer_stack = nn.ModuleList(MaskedBlock(sizes, width, heads) for _ in range(length))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.layer_stack:
            x = block(x, mask)
        return x


class Resample(nn.Module):
    """A convolution, then PixelUnshuffle or PixelShuffle; named for the key `down1_2.body.0`."""

    def __init__(self, c_in: int, c_out: int, shuffle: nn.Module):
        super().__init__()
        self.body = nn.Sequential(conv(c_in, c_out, 3), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Projection(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = conv(3, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Encoder(nn.Module):
    """lr [B, 3, H, W], mask [B, 1, H, W] -> conditions of levels 1, 2, 3 (fea_up2, 1, 0)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d, n, heads = sizes.dim, sizes.blocks, sizes.heads

        def stage(length: int, width: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(Block(sizes, width, heads) for _ in range(length)))

        def down(width: int) -> Resample:
            return Resample(width, width // 2, nn.PixelUnshuffle(2))

        def up(width: int) -> Resample:
            return Resample(width, 2 * width, nn.PixelShuffle(2))

        self.patch_embed = Projection(d)
        self.encoder_level1 = MaskedStage(sizes, n[0], d, heads[0])
        self.down1_2 = down(d)
        self.encoder_level2 = MaskedStage(sizes, n[1], 2 * d, heads[1])
        self.down2_3 = down(2 * d)
        self.encoder_level3 = MaskedStage(sizes, n[2], 4 * d, heads[2])
        self.down3_4 = down(4 * d)
        self.latent = stage(n[3], 8 * d, heads[3])
        self.up4_3 = up(8 * d)
        self.reduce_chan_level3 = conv(8 * d, 4 * d, 1)
        self.decoder_level3 = stage(n[2], 4 * d, heads[2])
        self.up3_2 = up(4 * d)
        self.reduce_chan_level2 = conv(4 * d, 2 * d, 1)
        self.decoder_level2 = stage(n[1], 2 * d, heads[1])
        self.up2_1 = up(2 * d)
        self.decoder_level1 = stage(n[0], 2 * d, heads[0])
        self.refinement = stage(sizes.refinement_blocks, 2 * d, heads[0])
        self.reduce_chan0 = conv(8 * d, 4 * d, 1)
        self.reduce_chan2 = conv(2 * d, 4 * d, 1)
        # never used
        self.output = conv(2 * d, 3, 3)
        colours = ((3, 64), (64, 128), (128, 192))
        self.fine_tune_color_map = nn.ModuleList(conv(i, o, 3, bias=True) for i, o in colours)
        self.reduce_chan1 = conv(4 * d, 4 * d, 1)

    def forward(self, lr: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask2, mask3 = (pad((resize(mask, factor) > 0.2).float()) for factor in (2, 4))
        e1 = self.encoder_level1(self.patch_embed(lr), mask)
        e2 = self.encoder_level2(self.down1_2(e1), mask2)
        e3 = self.encoder_level3(self.down2_3(e2), mask3)
        latent = self.latent(self.down3_4(e3))
        d3 = self.reduce_chan_level3(torch.cat([self.up4_3(latent), e3], 1))
        d3 = self.decoder_level3(d3)
        d2 = self.reduce_chan_level2(torch.cat([self.up3_2(d3), e2], 1))
        d2 = self.decoder_level2(d2)
        f = self.refinement(self.decoder_level1(torch.cat([self.up2_1(d2), e1], 1)))
        levels = ((self.reduce_chan2(d2), 2), (d3, 4), (self.reduce_chan0(latent), 8))
        fea_up2, fea_up1, fea_up0 = (torch.cat([u, resize(f, k)], 1) for u, k in levels)
        return fea_up2, fea_up1, fea_up0
