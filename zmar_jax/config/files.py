"""Configurations as YAML, in and out. A file in `configs/` states only what differs::

model:
  dim: 8
  blocks: [2, 1, 1, 1]
"""

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from zmar_jax.config.checks import ConfigError
from zmar_jax.config.run import Config
from zmar_jax.config.train import TrainConfig
from zmar_jax.files.places import Bucket, PlaceError, place

T = TypeVar("T")
NAMED = Path(__file__).parents[1] / "configs"
"""The configurations that come with the package; in a clone a link to `configs/`."""


def config_names() -> list[str]:
    """What `load_config` takes besides the path of a file."""
    return sorted(path.stem for path in NAMED.glob("*.yaml"))


def load_config(path: str | Path) -> Config:
    """Reads a YAML file, also by a URL, or one of `config_names()`; an empty file is the defaults.

    Raises:
      ConfigError: unreadable file, invalid YAML, a key twice, an unknown key (with the
        nearest right one) or a value of the wrong type.
    """
    if str(path) in config_names():
        path = NAMED / f"{path}.yaml"
    try:
        where = place(path)
        if isinstance(where, Path):
            text = where.read_text(encoding="utf-8")
        else:
            text = Bucket(where).read().decode("utf-8")
    except PlaceError as e:
        raise ConfigError(str(e)) from e
    except FileNotFoundError as e:
        raise ConfigError(
            f"{path}: no such file; the configurations with a name are {', '.join(config_names())}"
        ) from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot read this configuration: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"{path}: cannot read this configuration as UTF-8: {e}") from e
    data = _parse(text, str(path))
    return from_dict(Config, {} if data is None else data, str(path))


def override(config: Config, settings: Sequence[str]) -> Config:
    """The config with all `section.key=value` of `settings` applied, values as in YAML.

    Raises:
      ConfigError: no such key, or a value of the wrong type; the message names the setting. Or
        values that do not fit each other, in whatever order; it names all settings.
    """
    data = to_dict(config)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting}: expected section.key=value, as train.steps=1000")
        *sections, name = key.split(".")
        change: Any = {name: _parse(value, setting)}
        for section in reversed(sections):
            change = {section: change}
        _typed(Config, change, setting)
        data = _merged(data, change)
    return from_dict(Config, data, " ".join(settings))


def dump_config(config: Config) -> str:
    """YAML of the fields that differ from the defaults; `load_config` reads it back."""
    return yaml.safe_dump(
        _differences(config, type(config)()), sort_keys=False, default_flow_style=None
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types; `from_dict` reads it back."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_flat(config: Any) -> dict[str, Any]:
    """All values by dotted key, as on the command line: `{"train.steps": 40000, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        field = getattr(config, name)
        nested = dataclasses.is_dataclass(field)
        flat |= {f"{name}.{k}": v for k, v in to_flat(field).items()} if nested else {name: value}
    return flat


def from_dict(cls: type[T], data: Mapping[str, Any], source: str = "config", at: str = "") -> T:
    """Builds the frozen dataclass `cls`; fields that `data` leaves out keep their defaults.

    Raises:
      ConfigError: names `source`, the dotted key, and the nearest valid key or the type expected.
    """
    return _built(cls, _typed(cls, data, source, at), source, at)


def _typed(cls: type, data: Any, source: str, at: str = "") -> dict[str, Any]:
    """`data` with known keys and values of the fields' types; sections are mappings still."""
    if not isinstance(data, Mapping):
        got = reprlib.repr(data)
        raise ConfigError(f"{source}: {at or 'the file'} must hold keys and values, got {got}")
    data = _upgraded(cls, data)
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{source}: {_unknown_key(key, hints, at)}")
    return {k: _convert(v, hints[k], source, _dotted(at, k)) for k, v in data.items()}


def _built(cls: type[T], values: Mapping[str, Any], source: str, at: str) -> T:
    hints = typing.get_type_hints(cls)
    values = {
        k: _built(hints[k], v, source, _dotted(at, k)) if dataclasses.is_dataclass(hints[k]) else v
        for k, v in values.items()
    }
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


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as e:
        raise ConfigError(f"{source}: not valid YAML: {_yaml_problem(e, text)}") from e


def _merged(base: Any, change: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(change, Mapping)):
        return change
    return {**base, **{k: _merged(base.get(k), v) for k, v in change.items()}}


def _yaml_problem(error: Exception, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: character {error.character:#x} is not allowed"
    return "nested too deeply"


def _unknown_key(key: object, hints: Mapping[str, Any], at: str) -> str:
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    inner = [name for name, hint in sections.items() if str(key) in typing.get_type_hints(hint)]
    near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)[0]
    near = f"{inner[0]}.{key}" if inner else near
    return f"unknown key {_dotted(at, key)}; nearest: {_dotted(at, near)}"


def _upgraded(cls: type, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What older versions wrote, in today's words."""
    if cls is TrainConfig and isinstance(data.get("remat"), bool):
        return {**data, "remat": "blocks" if data["remat"] else "none"}
    return data


def _convert(value: Any, hint: Any, source: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _typed(typing.cast(type, hint), value, source, key)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple) and _fits(value, args):
        each = args[:1] * len(value) if args[-1] is ... else args
        pairs = enumerate(zip(value, each, strict=True))
        return tuple(_convert(v, a, source, f"{key}[{i}]") for i, (v, a) in pairs)
    if origin is types.UnionType:
        (wanted,) = (a for a in args if a is not type(None))
        return None if value is None else _convert(value, wanted, source, key)
    if origin is Literal and value in args:
        return value
    # Beyond 2**53 not every whole number is a float.
    if hint is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{source}: {key} must be {_describe(hint)}, got {reprlib.repr(value)}")


def _fits(value: Sequence[Any], args: tuple[Any, ...]) -> bool:
    """Whether a tuple with these type arguments may be as long as value."""
    return args[-1] is ... or len(value) == len(args)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _describe(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "" if args[-1] is ... else f"{len(args)} "
        if typing.get_origin(args[0]) is Literal:
            return f"a list, each {_describe(args[0])}"
        return f"a list of {count}{args[0].__name__}s"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(_describe(a) for a in args if a is not type(None)) + " or null"
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
