"""State dict of the PyTorch release <-> Flax params, by the key table."""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax.config import ConfigError, ModelConfig
from zmar_jax.files.errors import few
from zmar_jax.models import param_shapes
from zmar_jax.torch_port.files import WeightsError
from zmar_jax.torch_port.keys import Entry, Layout, key_table
from zmar_jax.torch_port.parts import check_whole
from zmar_jax.torch_port.settings import BRIGHTNESS, StateDict


def infer_config(state_dict: Mapping[str, np.ndarray]) -> ModelConfig:
    """The configuration that came with a `StateDict`; else the sizes that names and shapes show.

    Then what they do not show (mask grid, epsilons, policy) has the published value, but for the
    brightness, which is a tensor.

    Raises:
      WeightsError: not a ZMAR-SNFlow state dict, a part of one, or one of impossible sizes.
    """
    shapes = {k: tuple(v.shape) for k, v in state_dict.items()}
    check_whole(shapes)
    if isinstance(state_dict, StateDict) and state_dict.config:
        return _agreed(state_dict.config, state_dict)
    default = ModelConfig()
    count = _count(shapes, r"RRDB\.encoder_level(\d+)\.")
    levels = [f"encoder_level{i + 1}.layer_stack" for i in range(count)] + ["latent"]
    couplings = _count(shapes, r"flowUpsamplerNet\.layers\.(\d+)\.affine\.")
    steps = _count(shapes, r"flowUpsamplerNet\.layers\.(\d+)\.invconv\.")
    additional = (steps - couplings) // max(count, 1)
    try:
        return ModelConfig(
            dim=_size(shapes, "RRDB.patch_embed.proj.weight", default.dim),
            blocks=tuple(_count(shapes, rf"RRDB\.{re.escape(name)}\.(\d+)\.") for name in levels),
            refinement_blocks=_count(shapes, r"RRDB\.refinement\.(\d+)\."),
            heads=tuple(_size(shapes, f"RRDB.{name}.0.attn.temperature", 1) for name in levels),
            ffn_expansion=_expansion(shapes, default.ffn_expansion),
            brightness=_brightness(state_dict),
            mask_attention=any(".mask." in key for key in shapes),
            flow_steps=couplings // max(count, 1),
            flow_additional_steps=additional,
            flow_hidden=_size(
                shapes,
                f"flowUpsamplerNet.layers.{additional + 1}.affine.fAffine2.0.weight",
                default.flow_hidden,
            ),
        )
    except ConfigError as e:
        raise WeightsError(f"no model has the shapes of this state dict: {e}") from e


def _agreed(config: ModelConfig, state_dict: Mapping[str, np.ndarray]) -> ModelConfig:
    if BRIGHTNESS in state_dict and config.brightness != _brightness(state_dict):
        raise WeightsError(
            f"its metadata says brightness {config.brightness}, its tensor "
            f"{_brightness(state_dict)}; remove one of them"
        )
    return config


def _brightness(state_dict: Mapping[str, np.ndarray]) -> float:
    value = state_dict.get(BRIGHTNESS, np.zeros(1))
    if value.shape != (1,):
        raise WeightsError(f"misshapen {BRIGHTNESS}: expected (1,), got {value.shape}")
    return round(float(value[0]), 6)


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    return len({m[1] for key in shapes if (m := re.match(pattern, key))})


def _size(shapes: Mapping[str, tuple[int, ...]], key: str, default: int) -> int:
    shape = shapes.get(key, ())
    return shape[0] if shape else default


def _expansion(shapes: Mapping[str, tuple[int, ...]], published: float) -> float:
    """The published expansion if it explains every width, else the shortest decimal that does."""
    hidden = {
        shape[1]: shape[0] // 2
        for key, shape in shapes.items()
        if key.endswith("ffn.project_in.weight") and len(shape) == 4 and shape[1]
    }
    low = max((h / width for width, h in hidden.items()), default=published)
    high = min(((h + 1) / width for width, h in hidden.items()), default=published)
    decimals = (math.ceil(low * 10**digits) / 10**digits for digits in range(1, 10))
    for candidate in (published, *decimals):
        if all(int(width * candidate) == h for width, h in hidden.items()):
            return candidate
    return (low + high) / 2


def check(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> list[Entry]:
    """The key table of `config`, once the state dict is known to fit it.

    Published tensors that the model never uses may be there or not.

    Raises:
      WeightsError: lists the missing, unexpected, misshapen or non-finite keys, up to 20.
    """
    table = key_table(config)
    known = {BRIGHTNESS, *(entry.key for entry in table)}
    problems = [f"unexpected {key}" for key in state_dict if key not in known]
    for entry in table:
        if entry.key not in state_dict:
            if entry.parts:
                problems.append(f"missing {entry.key}")
        elif state_dict[entry.key].shape != entry.shape:
            got = state_dict[entry.key].shape
            problems.append(f"misshapen {entry.key}: expected {entry.shape}, got {got}")
        elif state_dict[entry.key].dtype.name not in _FLOATS:
            problems.append(f"not floating point: {entry.key} is {state_dict[entry.key].dtype}")
        elif entry.parts and not np.isfinite(state_dict[entry.key]).all():
            problems.append(f"not finite: {entry.key}")
    if problems:
        missing = [problem for problem in problems if problem.startswith("missing ")]
        part = " (it is a part or a shard of one)" if missing == problems else ""
        raise WeightsError(
            f"the state dict does not fit the model{part}, {len(problems)} problem(s): "
            + few(problems, "; ")
        )
    return table


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def to_params(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """Flax params (float32 `jax.Array`s) from a state dict in PyTorch layout.

    Raises:
      WeightsError: lists the missing, unexpected and misshapen keys, up to 20.
    """
    table = check(state_dict, config)  # first: what a file claims is not allocated unseen
    _all_named(table, config)
    leaves = {path: np.zeros(shape, np.float32) for path, shape in _leaf_shapes(config).items()}
    for entry in table:
        for part in entry.parts:
            live = np.asarray(state_dict[entry.key])[part.source]
            leaves[part.path][part.target] = _to_flax(live, part.layout)
    return jax.tree.map(jnp.asarray, unflatten_dict(leaves))


def to_state_dict(params: Mapping[str, Any], config: ModelConfig) -> StateDict:
    """All published tensors, float32 in PyTorch layout; loads strictly in PyTorch.

    The configuration comes along: `write_safetensors` keeps it, and `write_pth` refuses what it
    cannot keep.

    A `BRIGHTNESS` beside them makes strict loading fail: the release cannot run such a model.

    What the model never uses gets its initial values, the same at every call.

    Raises:
      WeightsError: `params` are not those of a model of this config.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    expected = _leaf_shapes(config)
    wrong = [
        "/".join(path)
        for path in leaves.keys() | expected.keys()
        if path not in leaves or leaves[path].shape != expected.get(path)
    ]
    if wrong:
        raise WeightsError(f"params do not fit the config at: {few(sorted(wrong))}")
    table = key_table(config)
    _all_named(table, config)
    tensors = {entry.key: _published(entry, leaves) for entry in table}
    if config.brightness:
        tensors[BRIGHTNESS] = np.array([config.brightness], np.float32)
    return StateDict(tensors, config)


def _all_named(table: list[Entry], config: ModelConfig) -> None:
    """Raises WeightsError where the model has a parameter that the table does not know."""
    named = {part.path for entry in table for part in entry.parts}
    unnamed = sorted("/".join(path) for path in _leaf_shapes(config) if path not in named)
    if unnamed:
        raise WeightsError(
            f"no published name for {few(unnamed)}; add them to zmar_jax/torch_port/keys.py"
        )


def _published(entry: Entry, leaves: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
    tensor = _initial(entry)
    for part in entry.parts:
        hole = tensor[part.source]
        tensor[part.source] = _to_torch(leaves[part.path][part.target], part.layout, hole.shape)
    return tensor


def params_checksum(params: Mapping[str, Any]) -> str:
    """CRC-32 over names and float32 values, the same whatever file the params came from."""
    crc = 0
    for path, leaf in sorted(flatten_dict(params).items()):
        crc = zlib.crc32("/".join(path).encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf, np.float32).tobytes(), crc)
    return f"{crc:08x}"


def _leaf_shapes(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves: dict[tuple[str, ...], Any] = flatten_dict(param_shapes(config))
    return {path: leaf.shape for path, leaf in leaves.items()}


def _to_flax(tensor: np.ndarray, layout: Layout) -> np.ndarray:
    match layout:
        case "conv":  # OIHW -> HWIO
            return tensor.transpose(2, 3, 1, 0)
        case "conv1":
            return tensor[:, :, 0, 0].T
        case "vector":
            return tensor.reshape(-1)
        case "matrix":
            return tensor


def _to_torch(array: np.ndarray, layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    match layout:
        case "conv":
            return array.transpose(3, 2, 0, 1)
        case "conv1":
            return array.T[:, :, None, None]
        case "vector":
            return array.reshape(shape)
        case "matrix":
            return array


def _initial(entry: Entry) -> np.ndarray:
    if entry.init == "zeros":
        return np.zeros(entry.shape, np.float32)
    if entry.init == "ones":
        return np.ones(entry.shape, np.float32)
    bound = entry.fan_in**-0.5
    rng = np.random.default_rng(zlib.crc32(entry.key.encode()))
    return rng.uniform(-bound, bound, entry.shape).astype(np.float32)
