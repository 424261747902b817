"""Writes ``.pth`` files as ``torch.save`` does, and as an attacker would, without torch."""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

STORAGES = {
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "bfloat16": "BFloat16Storage",
    "bool": "BoolStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


@dataclass(frozen=True)
class Name:
    """Pickles as the global ``module.name``, which need not exist."""

    module: str
    name: str

    def __call__(self) -> None:
        """Never called: pickle wants a callable as the function of a ``__reduce__``."""


@dataclass(frozen=True)
class Call:
    """Pickles as the call ``function(*arguments)``, with ``state`` as what its BUILD gets."""

    function: Name
    arguments: tuple
    state: Any = None

    def __reduce__(self) -> tuple:
        return self.function, self.arguments, self.state


@dataclass(frozen=True)
class Storage:
    """Pickles as the persistent id of a storage."""

    key: Any
    numel: Any
    kind: Any = Name("torch", "FloatStorage")


_PythonPickler: Any = pickle._Pickler


class _Pickler(_PythonPickler):
    def save_name(self, name: Name) -> None:
        self.write(f"c{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    dispatch: ClassVar = {**_PythonPickler.dispatch, Name: save_name}

    def persistent_id(self, obj: Any) -> tuple | None:
        if isinstance(obj, Storage):
            return "storage", obj.kind, obj.key, "cpu", obj.numel
        return None


def pickled(saved: Any, protocol: int = 2) -> bytes:
    """The bytes of ``data.pkl`` for ``saved``."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(saved)
    return out.getvalue()


def tensor(storage: Any, size: Any, stride: Any = None, offset: Any = 0, *more: Any) -> Call:
    """What torch saves for a tensor; C-contiguous where no stride is given."""
    if stride is None:
        steps = np.cumprod((1, *size[:0:-1])) if size else ()
        stride = tuple(int(step) for step in steps[::-1])
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, size, stride, False, OrderedDict(), *more))


def state_of(arrays: dict[str, np.ndarray]) -> tuple[OrderedDict, dict[str, bytes]]:
    """What torch saves for a state dict of ``arrays``, and its storages."""
    state, storages = OrderedDict(), {}
    for index, (name, array) in enumerate(arrays.items()):
        kind = Name("torch", STORAGES[array.dtype.name])
        state[name] = tensor(Storage(str(index), array.size, kind), array.shape)
        storages[str(index)] = array.tobytes()
    return state, storages


def archive(records: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of exactly ``records``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in records:
            file.writestr(name, data)
    return out.getvalue()


def pth(
    saved: Any,
    storages: dict[str, bytes],
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The file that torch.save writes; ``saved`` may be the bytes of data.pkl itself."""
    records = [("archive/data.pkl", saved if isinstance(saved, bytes) else pickled(saved))]
    if byteorder is not None:
        records.append(("archive/byteorder", byteorder))
    records += [(f"archive/data/{key}", data) for key, data in storages.items()]
    return archive([*records, ("archive/version", b"3\n")], compression)


def put(folder: Path, data: bytes, name: str = "weights.pth") -> Path:
    """``data`` as the file ``name`` in ``folder``."""
    path = folder / name
    path.write_bytes(data)
    return path
