"""Weights of any format: read into params, write from params."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from zmar_jax import torch_port
from zmar_jax.config import ModelConfig
from zmar_jax.files.errors import brief, errors_as
from zmar_jax.files.mirror import Mirror, named, published, scratch
from zmar_jax.files.places import is_there, place
from zmar_jax.files.replacing import put_back
from zmar_jax.models import param_shapes
from zmar_jax.weights import checkpoint, download, folder
from zmar_jax.weights.folder import is_run
from zmar_jax.weights.run import load_run

Format = Literal["orbax", "safetensors", "pth"]
_SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".pth": "pth", ".orbax": "orbax"}
_THERE = "exists already; choose another name or --overwrite"
BUNDLED = Path(__file__).parent / "nano.safetensors"
"""Weights of a small model, trained by this project's own `train`; README.md beside them tells."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Params with their sizes and where they came from.

    `tensors`, `used` and `dtypes` tell of the file; `checksum` of the model, whatever the file: of
    the params, and of the settings beside the sizes that are not as published.
    """

    params: Any
    config: ModelConfig
    format: Format
    tensors: int
    used: int
    dtypes: tuple[str, ...]
    source: str = "weights"
    """Which of several weights this is, of a training run or of a file, in words."""

    @property
    def checksum(self) -> str:
        params = torch_port.params_checksum(self.params)
        unpublished = torch_port.unpublished(self.config)
        if not unpublished:
            return params
        text = json.dumps(unpublished, sort_keys=True)
        return f"{zlib.crc32(text.encode(), int(params, 16)):08x}"


def load_weights(path: str | Path | None = None, key: str | None = None) -> Weights:
    """Reads a `.pth` or `.safetensors` file of the release's keys, an Orbax directory, or a run.

    Also a sharded `.safetensors` file: its index, or the folder that it is in.

    Without a path, or for `bundled`, the weights that come with the package; `hf:user/name` are
    those of a repository of the Hugging Face Hub (`download.parse`). Also by a URL: what is
    needed is copied to this machine for the while.

    Of a training run (WORKDIR, or one of its checkpoints) the best checkpoint by validation PSNR,
    or the newest where none was validated; the moving average, where it has one.

    Args:
      key: which state dict of a file that has several (`torch_port.read_state_dict`).

    Raises:
      ValueError: names the file, what is wrong with it, and what to do.
    """
    if path is None or str(path) == "bundled":
        path = BUNDLED
    if download.is_remote(path):
        path = download.downloaded(path)
    where = place(path)
    if isinstance(where, Path):
        return _load(where, key)
    with scratch(where.rpartition("/")[2]) as here, named(here, where):
        return _load(here, key, _fetch(where, here))


def _fetch(url: str, target: Path) -> Callable[[Path], object]:
    """Fetches weights, but of a run no arrays; returns what fetches those of a checkpoint."""
    mirror = Mirror(target, url)
    if mirror.bucket.is_object():
        target.rmdir()
        mirror.bucket.fetch("", target)
        return lambda path: None
    names = mirror.bucket.names()
    if not names:
        raise torch_port.WeightsError(f"{url}: expected weights, found nothing; check the name")
    few = folder.without_states(names)
    mirror.pull(lambda name: name in (few or names))
    return lambda path: mirror.pull(below=(path / "state").relative_to(target).as_posix())


def _load(
    path: Path, key: str | None, complete: Callable[[Path], object] = lambda path: None
) -> Weights:
    _put_back(path)
    kind = torch_port.weights_format(path)
    if kind == "orbax":
        if key is not None:
            raise torch_port.WeightsError(f"{path}: a folder has no --key; give a file, or no key")
        source = "weights"
        if is_run(path):
            params, config, source = load_run(path, complete)
        else:
            params, config = checkpoint.load_params(path)
        count = len(jax.tree.leaves(params))
        return Weights(params, config, kind, count, count, ("float32",), source)
    state_dict = torch_port.read_state_dict(path, key)
    try:
        config = torch_port.infer_config(state_dict)
        params = torch_port.to_params(state_dict, config)
    except torch_port.WeightsError as e:
        raise torch_port.WeightsError(f"{path}: {torch_port.shard_of(path) or e}") from e
    used = sum(bool(entry.parts) for entry in torch_port.key_table(config))
    used += torch_port.BRIGHTNESS in state_dict
    dtypes = tuple(sorted({a.dtype.name for a in state_dict.values()}))
    source = state_dict.source or "weights"
    return Weights(params, config, kind, len(state_dict), used, dtypes, source)


def save_weights(
    path: str | Path,
    weights: Weights,
    to: Format | None = None,
    overwrite: bool = False,
    compact: bool = False,
) -> Format:
    """Writes weights as the format `to`, by default the one that the suffix of `path` names.

    `.safetensors` and `.pth` hold all published keys; a name without a suffix becomes an Orbax
    directory. Every format keeps the whole configuration, or is refused.

    `compact` ones hold the tensors that the model uses, parameters in float16: enough for this
    project, too few for a strict `load_state_dict`.

    Raises:
      ValueError: `path` has another suffix and `to` is not given, it exists and `overwrite` is
        off, it cannot be written, a compact Orbax directory is asked for, a value is beyond
        float16, or a setting beyond what a `.pth` can hold.
    """
    where = place(path)
    if isinstance(where, Path):
        return _save(where, weights, to, overwrite, compact)
    if not overwrite and is_there(where):
        raise torch_port.WeightsError(f"{where}: {_THERE}")
    with published(where, last="config/metadata") as target:
        return _save(target.path, weights, to, overwrite, compact)


def _save(
    path: Path, weights: Weights, to: Format | None, overwrite: bool, compact: bool
) -> Format:
    to = _format_of(path, to)
    _put_back(path)
    if path.exists() and not overwrite:
        raise torch_port.WeightsError(f"{path}: {_THERE}")
    if to == "orbax" and compact:
        raise torch_port.WeightsError(
            f"{path}: only .safetensors and .pth files can be compact; change the name"
        )
    if to == "orbax":
        checkpoint.save_params(path, weights.params, weights.config)
        return to
    if path.is_dir():
        raise torch_port.WeightsError(f"{path}: is a folder; remove it or choose another name")
    state_dict = torch_port.to_state_dict(weights.params, weights.config)
    if compact:
        used = {entry.key for entry in torch_port.key_table(weights.config) if entry.parts}
        kept = {
            k: _halved(path, k, a) if k in used else a
            for k, a in state_dict.items()
            if k in used or k == torch_port.BRIGHTNESS
        }
        state_dict = torch_port.StateDict(kept, state_dict.config)
    if to == "safetensors":
        torch_port.write_safetensors(path, state_dict)
    else:
        torch_port.write_pth(path, state_dict)
    return to


def _put_back(path: Path) -> None:
    """An Orbax directory that a process was replacing when it was killed."""

    def problem(error: Exception) -> str:
        return f"{path}: its old weights cannot be put back ({brief(error)}); move them there"

    with errors_as(torch_port.WeightsError, problem, OSError):
        put_back(path)


def _format_of(path: Path, to: Format | None) -> Format:
    """What the name of a file to be written says, or `to`, which must not contradict it."""
    suffix = path.suffix.lower()
    named: Format | None = _SUFFIXES.get(suffix)
    if to and named and to != named:
        raise torch_port.WeightsError(f"{path}: the name says {named}, not {to}; change one")
    # a version, as in weights-1.5, is no suffix
    if not (to or named or re.fullmatch(r"\.?\d*", suffix)):
        raise torch_port.WeightsError(
            f"{path}: {path.suffix} is no format that is written here; end the name in "
            ".safetensors or .pth, or in neither for an Orbax directory (--to orbax takes any name)"
        )
    return to or named or "orbax"


def _halved(path: Path, key: str, tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    if not np.isfinite(half).all():
        raise torch_port.WeightsError(
            f"{path}: {key} has values beyond float16, of up to {np.abs(tensor).max():.3g}; "
            "write it without --compact"
        )
    return half


def parameter_counts(config: ModelConfig) -> list[tuple[str, int, int]]:
    """(part, live values, published values) of the encoder, the flow and both."""
    live = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        for part, shapes in param_shapes(config).items()
    }
    published = {"encoder": 0, "flow": 0}
    for entry in torch_port.key_table(config):
        part = "encoder" if entry.key.startswith("RRDB.") else "flow"
        published[part] += math.prod(entry.shape)
    rows = [(part, live[part], published[part]) for part in published]
    return [*rows, ("both", sum(live.values()), sum(published.values()))]
