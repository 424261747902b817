"""The sizes of ZMAR-SNFlow."""

import dataclasses
from typing import Literal

from zmar_jax.config.checks import bounded, check_ranges, require

_POLICIES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of ZMAR-SNFlow (SPEC sections 1-5). The defaults are the published model.

    Raises:
      ConfigError: a size is impossible; the message says which and why.
    """

    dim: int = 48
    """Channels of the encoder's first level; levels 2, 3 and latent have 2, 4, 8 times it."""
    blocks: tuple[int, int, int, int] = (4, 4, 4, 4)
    """Blocks at levels 1, 2, 3 and latent; the decoder mirrors levels 1 to 3."""
    refinement_blocks: int = 4
    """Plain blocks after the decoder, at full resolution."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Channel-attention heads at levels 1, 2, 3 and latent."""
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
    """Unconditional steps (actnorm, invconv) that open each of the three flow levels."""
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
    white_point: float = bounded(0.0, 0.0, 1.0)
    """Pictures are brightened until this share of their pixels is at most white, and seen so
    (`zmar_jax.exposure`); 0, as published: they are seen as they are."""
    policy: Literal["float32", "bfloat16"] = "float32"
    """`float32` everywhere, or `bfloat16` in the encoder and the couplings' hidden layers only."""

    def __post_init__(self):
        check_ranges(self)
        for name in ("layer_norm_eps", "scale_eps", "actnorm_eps"):
            require(getattr(self, name) >= 0, f"{name} must not be negative")
        require(0 <= self.mask_threshold <= 1, "mask_threshold must be between 0 and 1")
        require(
            self.white_point == round(self.white_point, 6),
            f"white_point must have at most 6 decimals, got {self.white_point}",
        )
        require(self.dim % 2 == 0, f"dim must be even, got {self.dim}")
        require(self.hidden(self.dim) >= 1, f"ffn_expansion {self.ffn_expansion} is too small")
        for level, heads in enumerate(self.heads):
            width = self.dim << level
            require(
                width % heads == 0,
                f"heads[{level}] = {heads} must divide that level's {width} channels",
            )
        require(self.policy in _POLICIES, f"policy must be one of {_POLICIES}, got {self.policy}")

    @property
    def condition_channels(self) -> int:
        """Channels of each condition fea_up0..2 (SPEC section 3)."""
        return 6 * self.dim

    def hidden(self, width: int) -> int:
        """Feed-forward hidden channels of a block of `width` channels."""
        return int(width * self.ffn_expansion)


PRESETS: dict[str, ModelConfig] = {
    "zmar_snflow": ModelConfig(),
    "tiny": ModelConfig(dim=8, blocks=(2, 1, 1, 1), refinement_blocks=2, flow_steps=2),
}
"""`zmar_snflow`: the published model. `tiny`: the golden files' sizes."""
