"""The sizes of ZMAR-SNFlow."""

import dataclasses
from typing import Literal

from zmar_jax.config.checks import bounded, check_ranges, require

MOST_LEVELS = 5
_POLICIES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of ZMAR-SNFlow (model.md sections 1-5). The defaults are the published model.

    Raises:
      ConfigError: a size is impossible; the message says which and why.
    """

    dim: int = 48
    """Channels of the encoder's first level; each further level and latent have twice as many."""
    blocks: tuple[int, ...] = (4, 4, 4, 4)
    """Blocks at each level and latent; the decoder mirrors the levels. Its length says how many
    `levels` encoder and flow have."""
    refinement_blocks: int = 4
    """Plain blocks after the decoder, at full resolution."""
    heads: tuple[int, ...] = (1, 2, 4, 8)
    """Channel-attention heads at each level and latent."""
    ffn_expansion: float = 2.66
    """Hidden channels of the feed-forward part, as a multiple of its input, rounded down."""
    mask_grid: int = 4
    """ZMA cuts the image into mask_grid x mask_grid cells."""
    mask_threshold: float = 0.2
    """A resized mask above this share of lost pixels counts as lost."""
    mask_attention: bool = True
    """Off: no ZMA, the ablation of the paper's idea; such a model has fewer parameters."""
    layer_norm_eps: float = 1e-5
    flow_additional_steps: int = 2
    """Unconditional steps (actnorm, invconv) that open each flow level."""
    flow_steps: int = 12
    """Conditional steps (actnorm, invconv, coupling) of each flow level: K."""
    flow_hidden: int = 64
    """Hidden channels of the coupling nets."""
    scale_shift: float = 2.0
    """Coupling scale = sigmoid(logit + scale_shift) + scale_eps."""
    scale_eps: float = 1e-4
    actnorm_eps: float = 1e-6
    """Added to the standard deviation when actnorm is initialised from data."""
    quantization: int = 32
    """Dequantisation: x = gt + noise / quantization."""
    brightness: float = bounded(0.0, 0.0, 0.9)
    """Dark pictures are brought to this geometric mean of their values, and seen so
    (`zmar_jax.imaging.exposure`), with lost pixels filled; 0, as published: as they are."""
    policy: Literal["float32", "bfloat16"] = "float32"
    """`float32` everywhere, or `bfloat16` in the encoder and the couplings' hidden layers only."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            len(self.blocks) == len(self.heads) and 2 <= self.levels <= MOST_LEVELS,
            f"blocks and heads must have one number for each of 2 to {MOST_LEVELS} levels and one "
            f"for latent, got {self.blocks} and {self.heads}",
        )
        for name in ("layer_norm_eps", "scale_eps", "actnorm_eps"):
            require(getattr(self, name) >= 0, f"{name} must not be negative")
        require(0 <= self.mask_threshold <= 1, "mask_threshold must be between 0 and 1")
        require(
            self.brightness == round(self.brightness, 6),
            f"brightness must have at most 6 decimals, got {self.brightness}",
        )
        require(self.dim % 2 == 0, f"dim must be even, got {self.dim}")
        require(self.hidden(self.dim) >= 1, f"ffn_expansion {self.ffn_expansion} is too small")
        for i, heads in enumerate(self.heads):
            width = self.width(i + 1)
            require(
                width % heads == 0,
                f"heads[{i}] = {heads} must divide that level's {width} channels",
            )
        require(self.policy in _POLICIES, f"policy must be one of {_POLICIES}, got {self.policy}")

    @property
    def levels(self) -> int:
        """How many levels encoder and flow have; each halves height and width."""
        return len(self.blocks) - 1

    @property
    def stride(self) -> int:
        """Pixels of the image on an edge of a latent's pixel; sizes are multiples of it."""
        return 2**self.levels

    @property
    def smallest(self) -> int:
        """The least height and width of an image: the mask's cells need two latent pixels."""
        return 2 * self.stride

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: all numbers of the RGB pixels that one pixel of it replaces."""
        return self.flow_channels(self.levels)

    @property
    def condition_channels(self) -> int:
        """Channels of each of the flow's conditions (model.md section 3)."""
        return 6 * self.dim

    def flow_channels(self, level: int) -> int:
        """Channels of the flow's state at a level, counted from 1."""
        return 3 * 4**level

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[H, W, C] of the latent of an image of this size."""
        return height // self.stride, width // self.stride, self.latent_channels

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size up to which an image is padded: multiples of `stride`."""
        return height + -height % self.stride, width + -width % self.stride

    def width(self, level: int) -> int:
        """Channels of the encoder at a level, from 1; latent is level `levels` + 1."""
        return self.dim << level - 1

    def hidden(self, width: int) -> int:
        """Feed-forward hidden channels of a block of `width` channels."""
        return int(width * self.ffn_expansion)


PRESETS: dict[str, ModelConfig] = {
    "zmar_snflow": ModelConfig(),
    "tiny": ModelConfig(dim=8, blocks=(2, 1, 1, 1), refinement_blocks=2, flow_steps=2),
}
"""`zmar_snflow`: the published model. `tiny`: the golden files' sizes."""
