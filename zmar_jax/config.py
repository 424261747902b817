"""Every size of the model as a typed, frozen field; presets; YAML in and out.

A file in `configs/` states only what differs from the published model::

    model:
      dim: 8
      blocks: [2, 1, 1, 1]
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
_POLICIES = ("float32", "bfloat16")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and fix."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of ZMAR-SNFlow (SPEC sections 1-5). The defaults are the published model.

    Raises:
      ConfigError: a size is impossible; the message says which and why.
    """

    dim: int = 48
    """Channels of the encoder's first level; levels 2, 3 and latent have 2, 4 and 8 times as many."""
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
    policy: Literal["float32", "bfloat16"] = "float32"
    """`float32` everywhere, or `bfloat16` encoder and coupling hidden layers (flow stays float32)."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                _require(value >= 1, f"{field.name} must be at least 1, got {value}")
        _require(min(self.blocks) >= 1, f"every entry of blocks must be >= 1, got {self.blocks}")
        _require(self.dim % 2 == 0, f"dim must be even, got {self.dim}")
        _require(self.hidden(self.dim) >= 1, f"ffn_expansion {self.ffn_expansion} is too small")
        for level, heads in enumerate(self.heads):
            width = self.dim << level
            _require(
                heads >= 1 and width % heads == 0,
                f"heads[{level}] = {heads} must divide that level's {width} channels",
            )
        _require(self.policy in _POLICIES, f"policy must be one of {_POLICIES}, got {self.policy}")

    @property
    def condition_channels(self) -> int:
        """Channels of each condition fea_up0..2 (SPEC section 3)."""
        return 6 * self.dim

    def hidden(self, width: int) -> int:
        """Feed-forward hidden channels of a block of `width` channels."""
        return int(width * self.ffn_expansion)


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run needs to know."""

    model: ModelConfig = ModelConfig()


PRESETS: dict[str, ModelConfig] = {
    "zmar_snflow": ModelConfig(),
    "tiny": ModelConfig(dim=8, blocks=(2, 1, 1, 1), refinement_blocks=2, flow_steps=2),
}
"""`zmar_snflow`: the published model. `tiny`: the golden files' sizes."""


def load_config(path: str | Path) -> Config:
    """Reads a YAML file.

    Raises:
      ConfigError: unreadable file, invalid YAML, an unknown key (with the nearest
        right one) or a value of the wrong type.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot read this configuration: {e}") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from e
    return from_dict(Config, data or {}, str(path))


def dump_config(config: Config) -> str:
    """YAML of the fields that differ from the defaults; `load_config` reads it back."""
    return yaml.safe_dump(_differences(config, type(config)()), sort_keys=False)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types; `from_dict` reads it back."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def from_dict(cls: type[T], data: Mapping[str, Any], source: str = "config", at: str = "") -> T:
    """Builds the frozen dataclass `cls`; fields that `data` leaves out keep their defaults.

    Raises:
      ConfigError: names `source`, the dotted key, and the nearest valid key or the type expected.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {at or 'the file'} must hold keys and values, got {data!r}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ConfigError(f"{source}: unknown key {_dotted(at, key)}; nearest: {_dotted(at, near[0])}")
    values = {k: _convert(v, hints[k], source, _dotted(at, k)) for k, v in data.items()}
    try:
        return cls(**values)
    except ConfigError as e:
        raise ConfigError(f"{source}: {_dotted(at, str(e))}") from e


def _convert(value: Any, hint: Any, source: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, source, key)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(args):
        return tuple(_convert(v, a, source, f"{key}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    if origin is Literal and value in args:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{source}: {key} must be {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(args)} {args[0].__name__}s"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, args))
    return getattr(hint, "__name__", str(hint))


def _dotted(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


def _differences(config: Any, default: Any) -> dict[str, Any]:
    out = {}
    for name, value in to_dict(config).items():
        mine, theirs = getattr(config, name), getattr(default, name)
        if mine != theirs:
            out[name] = _differences(mine, theirs) if dataclasses.is_dataclass(mine) else value
    return out
