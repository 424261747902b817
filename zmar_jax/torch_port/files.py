"""Files of PyTorch weights: which kind one is, reading it, writing it. Reading needs no torch."""

import contextlib
import importlib
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from zmar_jax.torch_port.archive import read_pth, values
from zmar_jax.torch_port.pickles import DAMAGED, DTYPES, WeightsError, shown

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


def weights_format(path: str | os.PathLike) -> Literal["pth", "safetensors", "orbax"]:
    """Which kind of weights ``path`` holds, by how the file begins; a folder is Orbax's.

    No more than the beginning is read, so a damaged file has a format too.

    Raises:
        WeightsError: it is missing, unreadable or something else, which the message names.
    """
    path = Path(path)
    try:
        if path.is_dir():
            if (path / "data.pkl").exists():
                raise WeightsError(f"{path}: is an unpacked .pth file; zip it or download it again")
            return "orbax"
        if not path.is_file():
            raise WeightsError(f"{path}: expected a weights file, found no file; check the path")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
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
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it, or if a very old torch.save wrote it, {_AGAIN}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page; download the file itself, not the page that links to it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run git lfs pull"
    if head.startswith(b"\x80"):
        return "a plain Python pickle; write the weights with torch.save"
    return "neither; check that this is the file with the weights and that it is whole"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state dict of a ``.pth`` or ``.safetensors`` file, whoever made the file.

    A ``.pth`` file may hold the state dict itself or a dict with it under ``state_dict``,
    ``params_ema`` or ``params``: the first of these wins, so the averaged weights are taken where
    a file has both. What lies beside it (epoch, config, optimizer) is ignored. A leading
    ``module.`` is taken off the keys that have it. Nothing in the file is run, and a small file
    cannot make this take much memory or time.

    Returns:
        Arrays in PyTorch's layout, with the file's shapes and dtypes (bfloat16 is ml_dtypes').
        They are read-only, and views of one storage still share it; they are strided as in the
        file, so not always contiguous.

    Raises:
        WeightsError: the file is missing, damaged, hostile or holds no state dict of tensors.
    """
    path = Path(path)
    kind = weights_format(path)
    try:
        if kind == "orbax":
            raise WeightsError("is a folder, as of an Orbax checkpoint; expected a PyTorch file")
        return _without_module(read_pth(path) if kind == "pth" else _read_safetensors(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:
        raise WeightsError(f"{path}: cannot be read ({_brief(error)}); {DAMAGED}") from error


def write_safetensors(
    path: str | os.PathLike,
    state_dict: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes ``state_dict`` to the safetensors file ``path``, whole or not at all.

    Shapes and dtypes are kept; views of one array are written one by one.

    Raises:
        WeightsError: it could not be written; what was at ``path`` before is still there.
    """
    with _whole_file(Path(path)) as file:
        # safetensors writes the memory at each array's address: it has to be in C order.
        arrays = {key: np.asarray(value, order="C") for key, value in state_dict.items()}
        file.write(safetensors.numpy.save(arrays, metadata))


def write_pth(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes ``state_dict`` to ``path`` with ``torch.save``, whole or not at all.

    Shapes and dtypes are kept; views of one array are written one by one.

    Raises:
        WeightsError: torch is not installed, or the file could not be written; what was at
            ``path`` before is still there.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{path}: writing a .pth file needs PyTorch: pip install 'zmar-jax[torch]', or write "
            "a .safetensors file"
        ) from error
    with _whole_file(Path(path)) as file:
        tensors = OrderedDict((key, _tensor(torch, value)) for key, value in state_dict.items())
        torch.save(tensors, file)


def _tensor(torch: Any, array: np.ndarray) -> Any:
    copy = np.array(array, order="C")  # torch warns of memory it may not write to.
    if copy.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _without_module(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``state`` without the prefix that torch's DataParallel puts before its keys."""
    stripped = {key.removeprefix("module."): array for key, array in state.items()}
    if len(stripped) != len(state):
        twice = next(key for key in state if key.startswith("module.") and key[7:] in state)
        raise WeightsError(f"holds both {shown(twice)} and {shown(twice[7:])}; remove one of them")
    return stripped


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # Not safetensors.numpy.load: some releases of it do not know bfloat16.
    state = {}
    for key, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise WeightsError(
                f"the tensor {shown(key)} has the dtype {shown(tensor['dtype'])}; expected one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}: convert it"
            )
        dtype = DTYPES[_SAFETENSORS_DTYPES[tensor["dtype"]]]
        state[key] = np.ndarray(tensor["shape"], dtype, values(tensor["data"], dtype))
        state[key].setflags(write=False)
    return state


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes ``path`` at the end of a block that raised nothing."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be written ({_brief(error)}); check the folder and the arrays"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
