"""Reading the zip files of ``torch.save`` without torch and without running what is in them.

Such a file is a zip archive with the record ``<root>/data.pkl``, a pickle of the saved object in
which each tensor names a storage, and the records ``<root>/data/<key>``, the storages' bytes. A
pickle is a program, so the one of a stranger's file is run here by an unpickler that can only put
together dicts, lists, tuples, strings, numbers and the inert records `Storage` and `Tensor`.
"""

import io
import math
import pickle
import pickletools
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DAMAGED = "the file is damaged: copy, download or save it again"
ONLY_STATE = "save model.state_dict() alone or under 'state_dict', 'params' or 'params_ema'"

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

_STORAGES = {
    "torch.HalfStorage": "float16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.BFloat16Storage": "bfloat16",
    "torch.BoolStorage": "bool",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ByteStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}

# 40,000 tensors fit; a pickle's objects may take a hundred times its bytes in memory.
_MOST_PICKLE_BYTES = 8 << 20
# Weights hardly deflate; records that overlap or unpack to far more are a zip bomb.
_MOST_EXPANSION = 4
_MOST_DIMENSIONS = 64


class WeightsError(ValueError):
    """A weights file that cannot be read or written; the message is one line for the user."""


def shown(value: object) -> str:
    """A short printable form of a value from a file, which may be huge, nested or unprintable."""
    if type(value) is str:
        return repr(value[:80])
    if type(value) is int and abs(value) < 1 << 64:
        return str(value)
    return f"an object of type {type(value).__name__}"


def values(data: bytes | bytearray, dtype: np.dtype) -> bytes | bytearray:
    """``data`` with each byte other than 0 made 1 where ``dtype`` is bool: NumPy has no others."""
    return (np.frombuffer(data, np.uint8) != 0).tobytes() if dtype.kind == "b" else data


@dataclass(frozen=True)
class Global:
    """A name such as ``torch.FloatStorage`` in a pickle. It is never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage as the pickle tells of it: ``numel`` numbers in the record ``data/<key>``."""

    dtype: np.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle tells of it. Nothing here has been checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any = None


def _ordered_dict() -> dict:
    return {}


def _size(sizes: Any) -> Any:
    return sizes


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise WeightsError("holds a conjugated or negated view; save its .resolve_neg()")
    return Tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    if metadata or type(dtype) is not Global:
        raise WeightsError(f"holds a tensor with the dtype {shown(dtype)}; {DAMAGED}")
    return Tensor(storage, offset, size, stride, DTYPES[dtype.name.removeprefix("torch.")])


def _parameter(data: Any, _grad: Any, _hooks: Any) -> Any:
    return data


_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
}
_GLOBALS = {*_CALLS, *_STORAGES, *(f"torch.{name}" for name in DTYPES)}


class _Opcodes(dict):
    def __missing__(self, opcode: int) -> None:
        names = (known.name for known in pickletools.opcodes if known.code == chr(opcode))
        name = next(names, f"{opcode:#04x}")
        raise WeightsError(
            f"uses the pickle opcode {name}, which no state dict needs; {ONLY_STATE}, or {DAMAGED}"
        )


# Left out: EXT* (bypass find_class), BYTEARRAY8 (allocates what it is told to), sets (hash nested
# tuples, in exponential time), the other ways to make objects, and the text forms of protocol 0.
_SAFE = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT
    GLOBAL STACK_GLOBAL BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
"""


# Not pickle.Unpickler: the C one allocates its memo up to the largest index that a file names, and
# has no table of opcodes to cut down.
class _Unpickler(pickle._Unpickler):
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise WeightsError(
                f"asks for the Python global {shown(full)}, which no state dict needs, so it was "
                f"not run; {ONLY_STATE}, and beware of files from strangers"
            )
        return Global(full)

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", Global(name), str(key), _, int(numel)) if name in _STORAGES:
                return Storage(DTYPES[_STORAGES[name]], key, numel)
        raise WeightsError(f"names a storage in a form that torch.save does not write; {DAMAGED}")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if type(function) is not Global or function.name not in _CALLS:
            raise WeightsError(f"calls {shown(getattr(function, 'name', function))}; {DAMAGED}")
        self.stack.append(_CALLS[function.name](*arguments))

    def load_build(self) -> None:
        # A state dict's own attributes (`_metadata`: the versions of its modules) hold no weights.
        self.stack.pop()

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set(self.stack.pop(), value)

    def load_setitems(self) -> None:
        items = self.pop_mark()  # pyright: ignore[reportAttributeAccessIssue]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        target = self.stack[-1]
        # Other keys could take for ever to hash (nested tuples) or be made to collide (big ints).
        if type(key) is not str and not (type(key) is int and 0 <= key < 1 << 32):
            raise WeightsError(f"holds a dict with the key {shown(key)}; {ONLY_STATE}")
        if type(target) is not dict or key in target:
            raise WeightsError(f"sets the key {shown(key)} twice or outside a dict; {DAMAGED}")
        target[key] = value

    dispatch = _Opcodes(
        {
            getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
            for name in _SAFE.split()
        }
        | {
            pickle.REDUCE[0]: load_reduce,
            pickle.BUILD[0]: load_build,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
        }
    )


class _Records:
    """The records of one archive of ``size`` bytes, none of which is trusted."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._size = size
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._storages: dict[tuple[str, np.dtype], bytes | bytearray] = {}
        if len(self._entries) != len(archive.infolist()):
            raise WeightsError(f"holds two records of one name; {DAMAGED}")
        if sum(entry.file_size for entry in archive.infolist()) > _MOST_EXPANSION * size:
            raise WeightsError(f"unpacks to over {_MOST_EXPANSION} times its size; {DAMAGED}")
        pickles = [name for name in self._entries if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(
                f"expected a zip archive of torch.save with one data.pkl, found {len(pickles)}; "
                "check that this is the file with the weights"
            )
        self._root = pickles[0].removesuffix("data.pkl")
        self._byteorder = self._read_byteorder()

    def unpickled(self) -> Any:
        """The saved object, its tensors as `Tensor`."""
        entry = self._entries[f"{self._root}data.pkl"]
        if entry.file_size > _MOST_PICKLE_BYTES:
            raise WeightsError(f"has a data.pkl of {entry.file_size} bytes; {ONLY_STATE}")
        return _Unpickler(io.BytesIO(self._read(entry))).load()

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """The values of ``tensor``: a read-only view of its storage, strided as in the file."""
        claim = f"the tensor {shown(name)}"
        size, stride, offset = _layout(claim, tensor)
        storage = tensor.storage
        if type(storage) is not Storage:
            raise WeightsError(f"{claim} has {shown(storage)} for its storage; {DAMAGED}")
        dtype = tensor.dtype or storage.dtype
        needed = math.prod(max(n, 1) for n in size) * dtype.itemsize
        if needed > self._size:
            raise WeightsError(
                f"{claim} claims the shape {size}, {needed} bytes, more than the whole file's "
                f"{self._size}; {DAMAGED}"
            )
        data = self._storage(claim, storage, dtype)
        if 0 in size:
            return np.zeros(size, dtype)
        end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if end * dtype.itemsize > len(data):
            raise WeightsError(
                f"{claim} of shape {size} needs {end * dtype.itemsize} bytes of its storage, which "
                f"holds {len(data)}; {DAMAGED}"
            )
        # A dimension of one may come with any stride, too large for NumPy as well.
        steps = [
            step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)
        ]
        return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)

    def _read_byteorder(self) -> str:
        entry = self._entries.get(f"{self._root}byteorder")
        order = self._read(entry) if entry else b"little"
        if order not in (b"little", b"big"):
            raise WeightsError(
                f"expected the byteorder little or big, found {order[:20]}; {DAMAGED}"
            )
        return order.decode()

    def _storage(self, claim: str, storage: Storage, dtype: np.dtype) -> bytes | bytearray:
        """The bytes of ``storage`` in this machine's order, as numbers of ``dtype``."""
        entry = self._entries.get(f"{self._root}data/{storage.key}")
        if entry is None:
            raise WeightsError(f"{claim}: no storage {shown(storage.key)} in the file; {DAMAGED}")
        expected = storage.numel * storage.dtype.itemsize
        if entry.file_size != expected:
            raise WeightsError(
                f"{claim}: its storage {shown(storage.key)} should hold {shown(expected)} bytes "
                f"and holds {entry.file_size}; {DAMAGED}"
            )
        key = (storage.key, dtype)
        if key not in self._storages:
            data = values(self._read(entry), dtype)
            if self._byteorder != sys.byteorder:
                data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().tobytes()
            self._storages[key] = data
        return self._storages[key]

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
            raise WeightsError(f"compresses {shown(entry.filename)} unlike torch.save; {DAMAGED}")
        if entry.file_size > self._size or (stored and entry.file_size != entry.compress_size):
            raise WeightsError(
                f"has the record {shown(entry.filename)}, said to unpack to {entry.file_size} "
                f"bytes, in a file of {self._size}; {DAMAGED}"
            )
        with self._archive.open(entry) as record:
            # With no count, a record that inflates to more than it says would be inflated whole.
            data = record.read(entry.file_size)
        if len(data) != entry.file_size:
            raise WeightsError(f"ends inside the record {shown(entry.filename)}; {DAMAGED}")
        return data


def _layout(claim: str, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The size, stride and offset of ``tensor``, known to be such."""
    size, stride, offset = tensor.size, tensor.stride, tensor.offset
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise WeightsError(f"{claim} has no size and stride of one length; {DAMAGED}")
    if len(size) > _MOST_DIMENSIONS:
        raise WeightsError(f"{claim} claims {len(size)} dimensions; {DAMAGED}")
    for number in (*size, *stride, offset):
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise WeightsError(
                f"{claim} expected whole numbers of 0 or more for its size, stride and offset, "
                f"found {shown(number)}; {DAMAGED}"
            )
    return size, stride, offset


def _state_dict(saved: Any) -> dict[str, Tensor]:
    """The state dict in what was saved: itself or the first of the usual keys that holds a dict."""
    if type(saved) is not dict:
        raise WeightsError(f"expected a state dict, found {shown(saved)}; {ONLY_STATE}")
    nested = (saved.get(key) for key in ("state_dict", "params_ema", "params"))
    state = next((found for found in nested if type(found) is dict), saved)
    for key, value in state.items():
        if type(key) is not str or type(value) is not Tensor:
            raise WeightsError(
                f"expected a tensor under each key, found {shown(value)} under {shown(key)}; "
                f"{ONLY_STATE}"
            )
    return state


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """The state dict of the ``torch.save`` file ``path``, as `files.read_state_dict` tells it.

    Only the storages of that state dict are read, not an optimizer's beside it.

    Raises:
        WeightsError: without the file's name in it, for what is checked here.
        Exception: of any type, from zipfile and pickle on a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        records = _Records(archive, path.stat().st_size)
        state = _state_dict(records.unpickled())
        return {name: records.array(name, tensor) for name, tensor in state.items()}
