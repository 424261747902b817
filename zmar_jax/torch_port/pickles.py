"""The pickles of ``torch.save``, read without torch and without running what is in them.

A pickle is a program, so the one of a stranger's file is run here by an unpickler that can only put
together dicts, lists, tuples, strings, numbers and the inert records `Storage` and `Tensor`.
"""

import contextlib
import io
import pickle
import pickletools
from dataclasses import dataclass
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


class WeightsError(ValueError):
    """A weights file that cannot be read or written; the message is one line for the user."""


def shown(value: object) -> str:
    """A short printable form of a value from a file, which may be huge, nested or unprintable."""
    if type(value) is str:
        return repr(value[:80])
    if type(value) is int and abs(value) < 1 << 64:
        return str(value)
    if type(value) is Other:
        return f"an object of type {value.name}"
    return f"an object of type {type(value).__name__}"


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


@dataclass(frozen=True)
class Other:
    """Anything that PyTorch saves beside weights, as a set or a device: its name and no more."""

    name: str


class OddKey:
    """A key of a dict that could take for ever to hash (nested tuples) or be made to collide."""

    def __init__(self, key: Any) -> None:
        self.shown = shown(key)


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
) -> Tensor | Other:
    if metadata or type(dtype) is not Global:
        raise WeightsError(f"holds a tensor with the dtype {shown(dtype)}; {DAMAGED}")
    name = dtype.name.removeprefix("torch.")
    if name not in DTYPES:
        return Other(f"Tensor of {name}")
    return Tensor(storage, offset, size, stride, DTYPES[name])


def _parameter(data: Any, _grad: Any, _hooks: Any, _state: Any = None) -> Any:
    return data


_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# What torch.load takes with weights_only, too. None of it is weights, so each is an `Other`.
_OTHERS = {
    *("collections.Counter", "torch.device", "_codecs.encode", "torch.serialization._get_layout"),
    *(f"{m}.{name}" for m in ("builtins", "__builtin__") for name in ("set", "complex")),
    *("builtins.bytearray", "__builtin__.bytearray"),
    *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_nested_tensor"),
    *("torch._utils._rebuild_qtensor", "torch._utils._rebuild_meta_tensor_no_storage"),
    "torch._utils._rebuild_wrapper_subclass",
}
_OTHER_STORAGES = {
    f"torch.{name}Storage"
    for name in ("ComplexFloat", "ComplexDouble", "QInt8", "QInt32", "QUInt8", "QUInt4x2")
}
_OTHER_DTYPES = {
    *("torch.complex32", "torch.complex64", "torch.complex128", "torch.qint8", "torch.qint32"),
    *("torch.quint8", "torch.float8_e4m3fn", "torch.float8_e4m3fnuz", "torch.float8_e5m2"),
    *("torch.float8_e5m2fnuz", "torch.per_tensor_affine", "torch.per_channel_affine"),
}
_GLOBALS = {
    *(*_CALLS, *_STORAGES, *(f"torch.{name}" for name in DTYPES)),
    *(*_OTHERS, *_OTHER_STORAGES, *_OTHER_DTYPES),
}


def _not_run(name: str) -> WeightsError:
    return WeightsError(
        f"asks for the Python global {shown(name)}, which no state dict needs, so it was "
        f"not run; {ONLY_STATE}, and beware of files from strangers"
    )


class _OpcodeError(WeightsError):
    """An opcode that no state dict needs."""


class _Opcodes(dict):
    def __missing__(self, opcode: int) -> None:
        names = (known.name for known in pickletools.opcodes if known.code == chr(opcode))
        name = next(names, f"{opcode:#04x}")
        raise _OpcodeError(
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
            raise _not_run(full)
        return Global(full)

    def persistent_load(self, pid: Any) -> Storage | Other:
        match pid:
            case ("storage", Global(name), str(key), _, int(numel)) if name in _STORAGES:
                return Storage(DTYPES[_STORAGES[name]], key, numel)
            case ("storage", Global(name), *_) if name in _OTHER_STORAGES:
                return Other(name)
        raise WeightsError(f"names a storage in a form that torch.save does not write; {DAMAGED}")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        name = function.name if type(function) is Global else ""
        if name in _OTHERS:
            self.stack.append(Other(name.rpartition(".")[2]))
            return
        if name not in _CALLS:
            raise WeightsError(f"calls {shown(name or function)}; {DAMAGED}")
        self.stack.append(_CALLS[name](*arguments))

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
        if type(key) is not str and not (type(key) is int and 0 <= key < 1 << 32):
            key = OddKey(key)
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


def unpickle(program: bytes) -> Any:
    """What the pickle ``program`` puts together, its tensors as `Tensor`.

    Raises:
        WeightsError: it asks for more than a state dict needs: for which global, if it says.
        Exception: of any type, where it is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(program)).load()
    except _OpcodeError as error:
        raise next(map(_not_run, _foreign_globals(program)), error) from None


def _foreign_globals(program: bytes) -> list[str]:
    """The globals in text, as protocols 0 to 3 have them, that no state dict needs."""
    found = []
    with contextlib.suppress(Exception):  # pickletools raises many types where it is damaged
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("GLOBAL", "INST"):
                found.append(str(argument).replace(" ", "."))
    return [name for name in found if name not in _GLOBALS]
