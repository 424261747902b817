"""The zip files of ``torch.save``, none of which is trusted.

Such a file holds the record ``<root>/data.pkl``, a pickle of the saved object in which each tensor
names a storage, and the records ``<root>/data/<key>``, the storages' bytes.
"""

import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.torch_port.pickles import (
    DAMAGED,
    ONLY_STATE,
    Storage,
    Tensor,
    WeightsError,
    shown,
    unpickle,
)
from zmar_jax.torch_port.selection import select
from zmar_jax.torch_port.settings import StateDict

# 40,000 tensors fit; a pickle's objects may take a hundred times its bytes in memory.
_MOST_PICKLE_BYTES = 8 << 20
# Weights hardly deflate; records that overlap or unpack to far more are a zip bomb.
_MOST_EXPANSION = 4
_MOST_DIMENSIONS = 64


def read_pth(path: Path, key: str | None = None) -> StateDict:
    """The state dict of the ``torch.save`` file ``path``, as `files.read_state_dict` tells it.

    Only the storages of that state dict are read, not an optimizer's beside it.

    Raises:
        WeightsError: without the file's name in it, for what is checked here.
        Exception: of any type, from zipfile and pickle on a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        records = _Records(archive, path.stat().st_size)
        state, source = select(records.unpickled(), key)
        arrays = {name: records.array(name, tensor) for name, tensor in state.items()}
        return StateDict(arrays, source=source)


def values(data: bytes | bytearray, dtype: np.dtype) -> bytes | bytearray:
    """``data`` with each byte other than 0 made 1 where ``dtype`` is bool: NumPy has no others."""
    return (np.frombuffer(data, np.uint8) != 0).tobytes() if dtype.kind == "b" else data


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
        return unpickle(self._read(entry))

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
