"""Files of PyTorch weights: which kind one is, reading it, writing it. Reading needs no torch."""

import contextlib
import importlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from zmar_jax.files.errors import brief, errors_as, few
from zmar_jax.files.places import local
from zmar_jax.files.replacing import whole_file
from zmar_jax.torch_port.archive import read_pth, values
from zmar_jax.torch_port.pickles import DAMAGED, DTYPES, WeightsError, shown
from zmar_jax.torch_port.selection import select
from zmar_jax.torch_port.settings import StateDict, check_pth, from_metadata, to_metadata

__all__ = ["WeightsError", "read_state_dict", "weights_format", "write_pth", "write_safetensors"]

_AGAIN = "open it in PyTorch >= 1.6 and torch.save it again"
# The number with which every torch.save file from before PyTorch 1.6 begins, as it is pickled.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAFETENSORS_DTYPES = {
    **{"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_MOST_SAFETENSORS_HEADER = 100_000_000
_MOST_INDEX = 8 << 20
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def weights_format(path: str | os.PathLike) -> Literal["pth", "safetensors", "orbax"]:
    """Which kind of weights ``path`` holds, by how the file begins; a folder is Orbax's.

    But a folder with the index of a sharded safetensors file holds that. No more than the beginning
    is read, so a damaged file has a format too.

    Raises:
        WeightsError: it is missing, unreadable or something else, which the message names.
    """
    path = local(path)
    try:
        if path.is_dir():
            if (path / "data.pkl").exists():
                raise WeightsError(f"{path}: is an unpacked .pth file; zip it or download it again")
            return "safetensors" if _index_in(path) else "orbax"
        if not path.is_file():
            raise WeightsError(f"{path}: expected a weights file, found no file; check the path")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
    if path.name.endswith(_INDEX) and head.lstrip().startswith(b"{"):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "pth"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_SAFETENSORS_HEADER:
        return "safetensors"
    raise WeightsError(f"{path}: expected a .pth or .safetensors file, found {_guess(head)}")


def _guess(head: bytes) -> str:
    """What the file that begins with ``head`` is instead, and what to do about it."""
    if not head:
        return "an empty file; copy or download it again"
    if _LEGACY_MAGIC in head[:32]:
        return f"the format that torch.save wrote before PyTorch 1.6; {_AGAIN}"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive; unpack it with gunzip or tar"
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it, or if a very old torch.save wrote it, {_AGAIN}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page; download the file itself, not the page that links to it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run git lfs pull"
    if head.lstrip().startswith(b"{"):
        return f"a JSON file; give the weights, or the index of a sharded file, *{_INDEX}"
    if head.startswith(b"\x80"):
        return "a plain Python pickle; write the weights with torch.save"
    return "neither; check that this is the file with the weights and that it is whole"


def read_state_dict(path: str | os.PathLike, key: str | None = None) -> StateDict:
    """The state dict of a ``.pth`` or ``.safetensors`` file, whoever made the file.

    A file may hold the state dict itself, or dicts that lead to it, and its keys may have prefixes
    (``state_dict``, ``params``, ``netG``, ``module.``, ``_orig_mod.``, whatever a framework calls
    them): the model's tensors are known by their names, and only those are read. Of several state
    dicts the averaged one (``ema``) is taken, else the first; ``source`` of what is returned says
    so. What lies beside it (epoch, config, optimizer) is ignored. Of another network it is the
    dict itself, or the first dict under one of the usual names. Nothing in the file is run, and a
    small file cannot make this take much memory or time.

    Args:
        path: also the ``.safetensors.index.json`` of a sharded file, or the folder with it.
        key: which of several state dicts, by the name that ``source`` or an error tells.

    Returns:
        Arrays in PyTorch's layout, with the file's shapes and dtypes (bfloat16 is ml_dtypes').
        They are read-only, and views of one storage still share it; they are strided as in the
        file, so not always contiguous.

    Raises:
        WeightsError: the file is missing, damaged, hostile or holds no state dict of tensors.
    """
    path = local(path)
    kind = weights_format(path)
    try:
        if kind == "orbax":
            raise WeightsError("is a folder, like an Orbax checkpoint; expected a PyTorch file")
        if kind == "pth":
            return read_pth(path, key)
        file = (_index_in(path) if path.is_dir() else None) or path
        read = _read_sharded if file.name.endswith(_INDEX) else _read_safetensors
        tensors, metadata = read(file)
        state, source = select(tensors, key)
        return StateDict(state, from_metadata(metadata), source)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:
        raise WeightsError(f"{path}: cannot be read ({brief(error)}); {DAMAGED}") from error


def shard_of(path: Path) -> str:
    """Where a file is one shard of several, by its name: that, and what to do; else empty."""
    if match := _SHARD.search(path.name):
        index = f"{path.name[: match.start()]}{_INDEX}, or the folder that holds it and all shards"
        what = index if path.suffix == ".safetensors" else "one file with all of them"
        return f"is one of {int(match[1])} shards of a file; give {what}"
    return ""


def write_safetensors(
    path: str | os.PathLike,
    state_dict: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes ``state_dict`` to the safetensors file ``path``, whole or not at all.

    Shapes and dtypes are kept; views of one array are written one by one. The configuration of a
    `StateDict` becomes metadata, which `read_state_dict` reads back.

    Raises:
        WeightsError: it could not be written; what was at ``path`` before is still there.
    """
    with _whole_file(local(path)) as file:
        # safetensors writes the memory at each array's address: it has to be in C order.
        arrays = {key: np.asarray(value, order="C") for key, value in state_dict.items()}
        said = {**to_metadata(state_dict), **(metadata or {})}
        file.write(safetensors.numpy.save(arrays, said or None))


def write_pth(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes ``state_dict`` to ``path`` with ``torch.save``, whole or not at all.

    Shapes and dtypes are kept; views of one array are written one by one.

    Raises:
        WeightsError: torch is not installed, the configuration of a `StateDict` has a setting that
            such a file cannot hold, or the file could not be written; what was at ``path`` before
            is still there.
    """
    try:
        check_pth(state_dict)
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{path}: writing a .pth file needs PyTorch: pip install 'zmar-jax[torch]', or write "
            "a .safetensors file"
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    with _whole_file(local(path)) as file:
        tensors = OrderedDict((key, _tensor(torch, value)) for key, value in state_dict.items())
        torch.save(tensors, file)


def _tensor(torch: Any, array: np.ndarray) -> Any:
    copy = np.array(array, order="C")  # torch warns of memory it may not write to.
    if copy.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata."""
    # Not safetensors.numpy.load: some releases of it do not know bfloat16.
    state, content = {}, path.read_bytes()
    for key, tensor in safetensors.deserialize(content):
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise WeightsError(
                f"the tensor {shown(key)} has the dtype {shown(tensor['dtype'])}; expected one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}: convert it"
            )
        dtype = DTYPES[_SAFETENSORS_DTYPES[tensor["dtype"]]]
        state[key] = np.ndarray(tensor["shape"], dtype, values(tensor["data"], dtype))
        state[key].setflags(write=False)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, header.get("__metadata__") or {}


def _index_in(folder: Path) -> Path | None:
    """The index of the one sharded file in a folder; None where there is none.

    Raises:
        WeightsError: there are several.
    """
    found = sorted(path for path in folder.glob(f"*{_INDEX}") if path.is_file())
    if len(found) > 1:
        names = few([shown(path.name) for path in found])
        raise WeightsError(f"{folder}: holds several sharded files; give one of {names}")
    return found[0] if found else None


def _read_sharded(index: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of all shards that an index names, which lie beside it."""
    if index.stat().st_size > _MOST_INDEX:
        raise WeightsError(f"is an index of over {_MOST_INDEX} bytes; {DAMAGED}")
    table = json.loads(index.read_bytes())
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"is an index without a weight_map from tensors to files; {DAMAGED}")
    state: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise WeightsError(f"names a shard outside its folder, {shown(name)}; {DAMAGED}")
        if not (index.parent / name).is_file():
            raise WeightsError(f"the shard {shown(name)} is not beside it; copy or download it")
        tensors, found = _read_safetensors(index.parent / name)
        state |= {key: tensor for key, tensor in tensors.items() if names.get(key) == name}
        metadata |= found
    if lacking := [shown(key) for key in names if key not in state]:
        raise WeightsError(f"its shards lack {few(lacking)}; copy or download them again")
    return state, metadata


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """`replacing.whole_file` in a folder that may have to be made."""

    def problem(error: Exception) -> str:
        return f"{path}: cannot be written ({brief(error)}); check the folder and the arrays"

    with errors_as(WeightsError, problem):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            yield file
