"""Every size of the model as a typed, frozen field; presets; YAML in and out.

A file in `configs/` states only what differs from the published model::

    model:
      dim: 8
      blocks: [2, 1, 1, 1]
"""

import dataclasses
import difflib
import re
import reprlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
_POLICIES = ("float32", "bfloat16")
_LARGEST = 2**16


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
    """`float32` everywhere, or `bfloat16` in the encoder and the couplings' hidden layers only."""

    def __post_init__(self):
        self._check_ranges()
        _require(self.dim % 2 == 0, f"dim must be even, got {self.dim}")
        _require(self.hidden(self.dim) >= 1, f"ffn_expansion {self.ffn_expansion} is too small")
        for level, heads in enumerate(self.heads):
            width = self.dim << level
            _require(
                width % heads == 0,
                f"heads[{level}] = {heads} must divide that level's {width} channels",
            )
        _require(self.policy in _POLICIES, f"policy must be one of {_POLICIES}, got {self.policy}")

    def _check_ranges(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is float:
                # NaN fails this comparison too.
                fits, wanted = abs(value) <= _LARGEST, f"a number up to {_LARGEST}"
            elif not isinstance(value, str):
                sizes = value if isinstance(value, tuple) else (value,)
                fits, wanted = all(1 <= n <= _LARGEST for n in sizes), f"from 1 to {_LARGEST}"
            else:
                continue
            _require(fits, f"{name} must be {wanted}, got {reprlib.repr(value)}")
        for name in ("layer_norm_eps", "scale_eps", "actnorm_eps"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative")
        _require(0 <= self.mask_threshold <= 1, "mask_threshold must be between 0 and 1")

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
    """Reads a YAML file; an empty one is the defaults.

    Raises:
      ConfigError: unreadable file, invalid YAML, a key twice, an unknown key (with the
        nearest right one) or a value of the wrong type.
    """
    data = _read_yaml(path)
    return from_dict(Config, {} if data is None else data, str(path))


def dump_config(config: Config) -> str:
    """YAML of the fields that differ from the defaults; `load_config` reads it back."""
    return yaml.safe_dump(
        _differences(config, type(config)()), sort_keys=False, default_flow_style=None
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types; `from_dict` reads it back."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any], source: str = "config", at: str = "") -> T:
    """Builds the frozen dataclass `cls`; fields that `data` leaves out keep their defaults.

    Raises:
      ConfigError: names `source`, the dotted key, and the nearest valid key or the type expected.
    """
    if not isinstance(data, Mapping):
        got = reprlib.repr(data)
        raise ConfigError(f"{source}: {at or 'the file'} must hold keys and values, got {got}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{source}: {_unknown_key(key, hints, at)}")
    values = {k: _convert(v, hints[k], source, _dotted(at, k)) for k, v in data.items()}
    try:
        return cls(**values)
    except ConfigError as e:
        raise ConfigError(f"{source}: {_dotted(at, str(e))}") from e


class _Loader(yaml.SafeLoader):
    """YAML in which a key is written once, 1e-5 is a number and an error has a line."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # What PyYAML lets out for 2020-13-01, `!!bool x` and `!!timestamp x`.
        except (ValueError, KeyError, AttributeError) as e:
            problem = f"cannot read {reprlib.repr(node.value)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from e


# PyYAML takes 1e-5 for a string, as YAML 1.1 asks for a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(path: str | Path) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot read this configuration: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"{path}: cannot read this configuration as UTF-8: {e}") from e
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as e:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(e, text)}") from e


def _yaml_problem(error: Exception, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: character {error.character:#x} is not allowed"
    return "nested too deeply"


def _unknown_key(key: object, hints: Mapping[str, Any], at: str) -> str:
    (near,) = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
    return f"unknown key {_dotted(at, key)}; nearest: {_dotted(at, near)}"


def _convert(value: Any, hint: Any, source: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, source, key)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(args):
        pairs = enumerate(zip(value, args, strict=True))
        return tuple(_convert(v, a, source, f"{key}[{i}]") for i, (v, a) in pairs)
    if origin is Literal and value in args:
        return value
    # Beyond 2**53 not every whole number is a float.
    if hint is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{source}: {key} must be {_describe(hint)}, got {reprlib.repr(value)}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


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
