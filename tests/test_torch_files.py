"""Files of PyTorch weights: what is read, what is refused, and that nothing in one ever runs."""

import io
import os
import pickle
import stat
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_corpus import STORAGES, Call, Name, Storage, archive, pickled, pth, put, state_of, tensor

from zmar_jax.torch_port.files import (
    WeightsError,
    read_state_dict,
    weights_format,
    write_pth,
    write_safetensors,
)

RNG = np.random.default_rng(0)
BF16 = np.dtype(ml_dtypes.bfloat16)
ARRAYS = {
    "conv.weight": RNG.normal(size=(2, 3, 1, 2)).astype(np.float32),
    "half": RNG.normal(size=(3, 2)).astype(np.float16),
    "bf": RNG.normal(size=5).astype(BF16),
    "mask": np.array([True, False]),
    "norm.num_batches_tracked": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
FLOATS = np.arange(12, dtype=np.float32)
ONE = {"0": FLOATS.tobytes()}
W = Storage("0", 12)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def error(path: Path) -> str:
    """The message with which ``path`` is refused: one line that begins with its name."""
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()  # One line, nothing to fool a terminal.
    assert len(text) - len(str(path)) < 500
    return text


# What is read.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_a_bare_state_dict(tmp_path: Path, protocol: int) -> None:
    state, storages = state_of(ARRAYS)
    path = put(tmp_path, pth(pickled(state, protocol), storages))
    assert weights_format(path) == "pth"
    same(read_state_dict(path), ARRAYS)


@pytest.mark.parametrize("byteorder", [b"little", b"big", None])
def test_every_dtype_in_both_byte_orders(tmp_path: Path, byteorder: bytes | None) -> None:
    for name in STORAGES:
        array = np.array([0, 1, 1, 0], np.int8).astype(BF16 if name == "bfloat16" else name)
        state, storages = state_of({"w": array})
        if byteorder == b"big":
            storages["0"] = array.byteswap().tobytes()
        same(read_state_dict(put(tmp_path, pth(state, storages, byteorder))), {"w": array})


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64"])
def test_unsigned_dtypes_come_in_untyped_storages(tmp_path: Path, name: str) -> None:
    array = np.arange(6, dtype=name).reshape(2, 3)
    storage = Storage("0", array.nbytes, Name("torch.storage", "UntypedStorage"))
    rebuild = Name("torch._utils", "_rebuild_tensor_v3")
    arguments = (storage, 0, (2, 3), (3, 1), False, OrderedDict(), Name("torch", name))
    path = put(tmp_path, pth({"w": Call(rebuild, arguments)}, {"0": array.tobytes()}))
    same(read_state_dict(path), {"w": array})


def test_views_of_a_shared_storage(tmp_path: Path) -> None:
    state = {
        "whole": tensor(W, (3, 4)),
        "transposed": tensor(W, (4, 3), (1, 4)),
        "part": tensor(W, (2, 2), (4, 2), 5),
        "expanded": tensor(W, (2, 3), (0, 0), 11),
        "scalar": tensor(W, (), (), 3),
        "one": tensor(W, (1, 2), (1 << 62, 1)),
    }
    whole = FLOATS.reshape(3, 4)
    found = read_state_dict(put(tmp_path, pth(state, ONE)))
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "part": np.array([[5, 7], [9, 11]], np.float32),
        "expanded": np.full((2, 3), 11, np.float32),
        "scalar": np.array(3, np.float32),
        "one": FLOATS[None, :2],
    }
    same(found, expected)
    assert found["whole"].flags.c_contiguous
    assert found["one"].flags.c_contiguous
    assert np.shares_memory(found["whole"], found["transposed"])
    assert not any(array.flags.writeable for array in found.values())


def test_parameters_and_the_attributes_of_a_state_dict(tmp_path: Path) -> None:
    parameter = Name("torch._utils", "_rebuild_parameter")
    saved = Call(Name("collections", "OrderedDict"), (), {"_metadata": {"": {"version": 1}}})
    same(read_state_dict(put(tmp_path, pth(saved, {}))), {})
    saved = {"w": Call(parameter, (tensor(W, (12,)), True, OrderedDict()))}
    same(read_state_dict(put(tmp_path, pth(saved, ONE))), {"w": FLOATS})


def test_bytes_of_a_bool_other_than_one(tmp_path: Path) -> None:
    saved = {"w": tensor(Storage("0", 3, Name("torch", "BoolStorage")), (3,))}
    found = read_state_dict(put(tmp_path, pth(saved, {"0": b"\0\2\xff"})))
    same(found, {"w": np.array([False, True, True])})


@pytest.mark.parametrize("key", ["state_dict", "params", "params_ema"])
def test_nested_state_dict_beside_metadata(tmp_path: Path, key: str) -> None:
    state, storages = state_of(ARRAYS)
    moments = {0: {"step": tensor(Storage("gone", 1), (1,))}}
    beside = {"optimizer": {"state": moments, "param_groups": [{"betas": (0.9, 0.99)}]}}
    saved = {"epoch": 3, "best": 1.5, "config": {"name": "x", "none": None}, **beside, key: state}
    same(read_state_dict(put(tmp_path, pth(saved, storages))), ARRAYS)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    saved = {"params": {"w": tensor(W, (12,))}, "params_ema": {"w": tensor(W, (2,), (1,), 4)}}
    same(read_state_dict(put(tmp_path, pth(saved, ONE))), {"w": FLOATS[4:6]})


def test_a_tensor_may_be_called_params(tmp_path: Path) -> None:
    saved = {"params": tensor(W, (12,))}
    same(read_state_dict(put(tmp_path, pth(saved, ONE))), {"params": FLOATS})


def test_module_prefix(tmp_path: Path) -> None:
    saved = {"module.a": tensor(W, (12,)), "b": tensor(W, (2,)), "module.module.c": tensor(W, (1,))}
    found = read_state_dict(put(tmp_path, pth(saved, ONE)))
    assert list(found) == ["a", "b", "module.c"]
    saved = {"module.a": tensor(W, (12,)), "a": tensor(W, (2,))}
    assert "both 'module.a' and 'a'" in error(put(tmp_path, pth(saved, ONE)))


def test_a_deflated_file(tmp_path: Path) -> None:
    state, storages = state_of(ARRAYS)
    path = put(tmp_path, pth(state, storages, compression=zipfile.ZIP_DEFLATED))
    same(read_state_dict(path), ARRAYS)


# What is no weights file.

LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file"),
        (LEGACY, "before PyTorch 1.6; open it in PyTorch >= 1.6 and torch.save it again"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 4), "before PyTorch 1.6"),
        (tar(), "tar archive"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        (pickle.dumps({"a": 1}), "a plain Python pickle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "expected a .pth or .safetensors file"),
        (b"PK", "that it is whole"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, expected: str) -> None:
    path = put(tmp_path, data)
    assert expected in error(path)
    with pytest.raises(WeightsError, match=r"weights\.pth: expected a \.pth or \.safetensors"):
        weights_format(path)


def test_paths_without_a_file(tmp_path: Path) -> None:
    assert "found no file; check the path" in error(tmp_path / "missing.pth")
    os.mkfifo(tmp_path / "pipe")
    assert "found no file" in error(tmp_path / "pipe")
    assert "cannot be opened" in error(tmp_path / ("x" * 300))
    assert weights_format(tmp_path) == "orbax"
    assert "is a folder, like an Orbax checkpoint" in error(tmp_path)
    (tmp_path / "data.pkl").touch()
    assert "is an unpacked .pth file" in error(tmp_path)


def test_other_zip_files(tmp_path: Path) -> None:
    path = put(tmp_path, archive([("a.npy", b"x")]))
    assert "with one data.pkl, found 0" in error(path)
    state = pickled({})
    path = put(tmp_path, archive([("a/data.pkl", state), ("b/data.pkl", state)]))
    assert "with one data.pkl, found 2" in error(path)


# What is damaged or lies.


def bad(*arguments: Any) -> dict[str, Call]:
    return {"w": tensor(*arguments)}


REFUSED = {
    "list": ([1], "expected a state dict, found an object of type list"),
    "one tensor": (tensor(W, (12,)), "expected a state dict, found an object of type Tensor"),
    "string": ({"w": tensor(W, (12,)), "note": "x"}, "found 'x' under 'note'"),
    "integer": ({"w": 3}, "found 3 under 'w'"),
    "nested string": ({"params": {"w\n\x1b[2J": "x"}}, r"under 'w\n\x1b[2J'"),
    "unknown nest": ({"mine": {"w": tensor(W, (12,))}}, "type dict under 'mine'; save"),
    "integer key": ({3: tensor(W, (12,))}, "under 3"),
    "float key": ({0.5: 1}, "a dict with the key an object of type float"),
    "tuple key": ({((),): 1}, "a dict with the key an object of type tuple"),
    "no storage": (bad(Storage("1", 12), (12,)), "no storage '1' in the file"),
    "path as key": (bad(Storage("../version", 12), (12,)), "no storage '../version'"),
    "long key": (bad(Storage("k" * 9999, 12), (12,)), "no storage 'kkk"),
    "integer as key": (bad(Storage(0, 12), (12,)), "a form that torch.save does not write"),
    "odd numel": (bad(Storage("0", "12"), (12,)), "a form that torch.save does not write"),
    "odd type": (bad(Storage("0", 12, "float"), (12,)), "a form that torch.save does not write"),
    "dtype for type": (
        bad(Storage("0", 12, Name("torch", "float32")), (12,)),
        "a form that torch.save does not write",
    ),
    "numel too small": (bad(Storage("0", 2), (2,)), "should hold 8 bytes and holds 48"),
    "numel too large": (bad(Storage("0", 13), (12,)), "should hold 52 bytes and holds 48"),
    "negative numel": (bad(Storage("0", -1), (12,)), "should hold -4 bytes and holds 48"),
    "too long": (bad(W, (13,)), "needs 52 bytes of its storage, which holds 48"),
    "too far": (bad(W, (2,), (11,), 1), "needs 52 bytes of its storage, which holds 48"),
    "far offset": (bad(W, (1,), (1,), 12), "needs 52 bytes of its storage, which holds 48"),
    "huge offset": (bad(W, (1,), (1,), (1 << 63) - 1), "bytes of its storage, which holds 48"),
    "huge stride": (bad(W, (2,), ((1 << 63) - 1,)), "bytes of its storage, which holds 48"),
    "negative size": (bad(W, (-1,), (1,)), "numbers of 0 or more for its size"),
    "negative stride": (bad(W, (2,), (-1,), 1), "found -1"),
    "negative offset": (bad(W, (2,), (1,), -1), "found -1"),
    "monstrous": (bad(W, (1 << 9999,), (1,)), "found an object of type int"),
    "float size": (bad(W, (2.0,), (1,)), "found an object of type float"),
    "bool size": (bad(W, (True,), (1,)), "found an object of type bool"),
    "list size": (bad(W, [2], (1,)), "no size and stride of one length"),
    "no stride": (bad(W, (2,), ()), "no size and stride of one length"),
    "dimensions": (bad(W, (1,) * 65), "claims 65 dimensions"),
    "stride 0": (bad(W, (1 << 40,), (0,)), "bytes, more than the whole file's"),
    "overflow": (bad(W, (1 << 32, 1 << 32), (0, 0)), "bytes, more than the whole file's"),
    "empty but huge": (bad(W, (0, 1 << 62), (0, 0)), "bytes, more than the whole file's"),
    "no Storage": (bad("0", (12,)), "has '0' for its storage"),
    "negated": (bad(W, (12,), None, 0, {"neg": True}), "conjugated or negated"),
    "few arguments": (Call(Name("torch._utils", "_rebuild_tensor_v2"), (W,)), "TypeError"),
    "storage called": (Call(Name("torch", "FloatStorage"), (12,)), "calls 'torch.FloatStorage'"),
    "not a tensor": (
        {"w": Call(Name("torch._utils", "_rebuild_parameter"), ("x", True, None))},
        "found 'x' under 'w'",
    ),
    "filled dict": (Call(Name("collections", "OrderedDict"), ([],)), "TypeError"),
    "odd dtype": (
        Call(Name("torch._utils", "_rebuild_tensor_v3"), (W, 0, (), (), False, None, "float32")),
        "with the dtype 'float32'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    saved, expected = REFUSED[case]
    assert expected in error(put(tmp_path, pth(saved, ONE)))


def test_an_empty_tensor_may_lie_anywhere(tmp_path: Path) -> None:
    found = read_state_dict(put(tmp_path, pth(bad(W, (0, 3), (3, 1), 99), ONE)))
    assert found["w"].shape == (0, 3)


GOOD = pth(bad(W, (12,)), ONE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pth(bad(W, (12,)), ONE, b"middle"), "expected the byteorder little or big"),
        (GOOD.replace(FLOATS.tobytes(), FLOATS[::-1].tobytes()), "Bad CRC-32"),
        (pth(bad(W, (12,)), ONE, compression=zipfile.ZIP_BZIP2), "compresses"),
        (pth(b"", ONE), "EOFError"),
        (pth(b"\x80\x02", ONE), "EOFError"),
        (pth(b"\x80\xff.", ONE), "unsupported pickle protocol"),
        (pth(b"\x80\x02h\x05.", ONE), "Memo value not found"),
        (pth(b"\x80\x02X\x02\0\0\0\xff\xff.", ONE), "UnicodeDecodeError"),
        (pth(b"\x80\x02R.", ONE), "IndexError"),
        (pth(b"\x80\x02}(K\1u.", ONE), "shorter"),
        (pth(b"\x80\x02}(X\1\0\0\0aK\1X\1\0\0\0aK\2u.", ONE), "sets the key 'a' twice"),
        (pth(b"\x80\x02]X\1\0\0\0aK\1s.", ONE), "sets the key 'a' twice or outside a dict"),
        (pth(b"\x80\x02" + b"]" * (8 << 20), ONE), "has a data.pkl of 8388610 bytes"),
    ],
    # files hold the time of day, by which two processes would not collect the same tests
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_damaged(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in error(put(tmp_path, data))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(tmp_path: Path) -> None:
    record = ("archive/data.pkl", pickled(bad(W, (12,))))
    path = put(tmp_path, archive([record, record, ("archive/data/0", FLOATS.tobytes())]))
    assert "two records of one name" in error(path)


def patched(data: bytes, entry: bytes, offset: int, layout: str, value: int) -> bytes:
    """``data`` with a field of the central directory's entry for the record ``entry`` changed."""
    start = data.rindex(b"PK\1\2", 0, data.rindex(entry)) + offset
    return data[:start] + struct.pack(layout, value) + data[start + struct.calcsize(layout) :]


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = {"0": bytes(1 << 24)}
    saved = bad(Storage("0", 1 << 22), (1 << 22,))
    bomb = put(tmp_path, pth(saved, zeros, compression=zipfile.ZIP_DEFLATED), "bomb.pth")
    # Says that it unpacks to the 48 bytes that its tensor takes, and unpacks to 16 MiB.
    liar = pth(bad(W, (12,)), zeros, compression=zipfile.ZIP_DEFLATED)
    liar = put(tmp_path, patched(liar, b"archive/data/0", 24, "<I", 48), "liar.pth")
    tracemalloc.start()
    try:
        assert "unpacks to over 4 times its size" in error(bomb)
        assert "Bad CRC-32" in error(liar)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_record_that_unpacks_to_more_than_the_file(tmp_path: Path) -> None:
    saved, storages = bad(Storage("0", 500), (1,)), {"0": bytes(2000), "1": RNG.bytes(300)}
    data = pth(saved, storages, compression=zipfile.ZIP_DEFLATED)
    assert len(data) < 2000
    assert f"said to unpack to 2000 bytes, in a file of {len(data)}" in error(put(tmp_path, data))


def test_a_record_longer_than_stored(tmp_path: Path) -> None:
    longer = patched(GOOD, b"archive/data/0", 24, "<I", 52)
    assert "should hold 48 bytes and holds 52" in error(put(tmp_path, longer))
    saved = pth(bad(Storage("0", 13), (13,)), ONE)
    longer = patched(saved, b"archive/data/0", 24, "<I", 52)
    assert "said to unpack to 52 bytes" in error(put(tmp_path, longer))


# What would run, or take the machine's memory or time.


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_in_a_file_runs(tmp_path: Path, nested: bool) -> None:
    marker = tmp_path / "marker"
    attack = Call(Name("os", "system"), (f"touch {marker}",))
    saved = {"optimizer": attack, "state_dict": bad(W, (12,))} if nested else attack
    for protocol in range(6):
        file = put(tmp_path, pth(pickled(saved, protocol), ONE))
        assert "the Python global 'os.system'" in error(file)
        assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("collections", "defaultdict"),
        ("collections", "OrderedDict.__init__"),
        ("argparse", "Namespace"),
    ],
)
def test_globals(tmp_path: Path, module: str, name: str) -> None:
    saved = {"w": Call(Name(module, name), ("1",))}
    assert f"the Python global '{module}.{name}'" in error(put(tmp_path, pth(saved, ONE)))


ORDERED = b"\x80\x02ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "the Python global 'os.system'"),
        (b"(ios\nsystem\n.", "the Python global 'os.system'"),
        (b"(S'true'\nicollections\nOrderedDict\n.", "opcode STRING"),
        (b"(dVa\np0\ncos", "opcode DICT"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02\x83\x01\0.", "opcode EXT2"),
        (b"\x80\x02\x84\x01\0\0\0.", "opcode EXT4"),
        (ORDERED + b")\x81.", "opcode NEWOBJ"),
        (ORDERED + b")}\x92.", "opcode NEWOBJ_EX"),
        (b"(" + ORDERED[2:] + b"o.", "opcode OBJ"),
        (ORDERED + b"}X\1\0\0\0aK\1sb.", "found an object of type Global"),
        (ORDERED + b")R}X\x09\0\0\0__class__K\1sb.", None),
        (ORDERED + b")RK\1a.", "AttributeError"),
        (ORDERED + b"X\1\0\0\0aK\1s.", "sets the key 'a' twice or outside a dict"),
        (ORDERED + b")R)R.", "calls an object of type dict"),
        (b"\x80\x02X\1\0\0\0aQ.", "a form that torch.save does not write"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b".", "opcode BYTEARRAY8"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 36) + b".", "pickle"),
        (b"\x80\x05\x95" + struct.pack("<Q", 1 << 36) + b".", "IndexError"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "found an object of type list"),
        (b"\x80\x05\x8f.", "opcode EMPTY_SET"),
        (b"\x80\x02" + b"]" * 99999 + b"a" * 99998 + b".", "found an object of type list"),
        (b"\x80\x02" + b"(" * 99999 + b"t" * 99999 + b".", "found an object of type tuple"),
        (b"\x80\x02}q\0X\1\0\0\0ah\0s.", "found an object of type dict under 'a'"),
        (b"\x80\x02}q\0X\6\0\0\0paramsh\0s.", "found an object of type dict under 'params'"),
        (b"\x80\x02})" + b"q\0h\0\x86" * 99 + b"K\1s.", "with the key an object of type tuple"),
        (b"\x80\x02})" + b"q\0h\0\x86" * 99 + b"Q.", "a form that torch.save does not write"),
        (b"\x80\x02" + b")" + b"q\0h\0\x86" * 99 + b".", "found an object of type tuple"),
    ],
)
def test_hostile_pickles(tmp_path: Path, program: bytes, expected: str | None) -> None:
    start = time.monotonic()
    path = put(tmp_path, pth(program, {}))
    if expected is None:
        assert read_state_dict(path) == {}
    else:
        assert expected in error(path)
    assert time.monotonic() - start < 20


def safetensors_file(header: str, data: bytes = bytes(10)) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


SAFETENSORS = safetensors_file(
    '{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    '"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}'
)
SMALL = [
    pth(*state_of(ARRAYS)),
    pth(*state_of(ARRAYS), compression=zipfile.ZIP_DEFLATED),
    SAFETENSORS,
]


def survives(folder: Path, data: bytes) -> None:
    """Reading ``data`` gives arrays or a WeightsError of one line, nothing else."""
    try:
        read_state_dict(put(folder, data))
    except WeightsError as caught:
        text = str(caught)
    else:
        text = ""
    assert "\n" not in text


@settings(max_examples=100, deadline=None)
@given(whole=st.sampled_from(SMALL), part=st.floats(0, 1, exclude_max=True))
def test_truncated_anywhere(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, part: float
) -> None:
    error(put(tmp_path_factory.getbasetemp(), whole[: int(part * len(whole))]))


FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


def flipped(data: bytes, flips: list[tuple[float, int]]) -> bytes:
    out = bytearray(data)
    for part, change in flips:
        out[int(part * len(out))] ^= change
    return bytes(out)


@settings(max_examples=200, deadline=None)
@given(whole=st.sampled_from(SMALL), flips=FLIPS)
def test_flipped_bytes(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, flips: list[tuple[float, int]]
) -> None:
    survives(tmp_path_factory.getbasetemp(), flipped(whole, flips))


@settings(max_examples=200, deadline=None)
@given(flips=FLIPS)
def test_flipped_bytes_in_the_pickle(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[float, int]]
) -> None:
    state, storages = state_of(ARRAYS)
    damaged = pth(flipped(pickled(state), flips), storages)
    survives(tmp_path_factory.getbasetemp(), damaged)


# Safetensors.


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {f"module.{key}": array for key, array in ARRAYS.items()}, {"a": "b"})
    assert weights_format(path) == "safetensors"
    found = read_state_dict(path)
    same(found, ARRAYS)
    assert not any(array.flags.writeable for array in found.values() if array.size)
    assert b'"__metadata__":{"a":"b"}' in path.read_bytes()
    path = put(tmp_path, SAFETENSORS, "misnamed.pth")
    same(read_state_dict(path), {"w": np.zeros(2, np.float32), "b": np.array(0, BF16)})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,10]}}', "SafetensorError"),
        ('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "SafetensorError"),
        ('{"w":{"dtype":"F8_E5M2","shape":[10],"data_offsets":[0,10]}}', "dtype 'F8_E5M2'"),
        ('{"w":{"dtype":"I8","shape":[-10],"data_offsets":[0,10]}}', "SafetensorError"),
        ('{"w":', "SafetensorError"),
    ],
)
def test_refused_safetensors(tmp_path: Path, header: str, expected: str) -> None:
    assert expected in error(put(tmp_path, safetensors_file(header), "w.safetensors"))


def test_safetensors_with_colliding_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"module.a": FLOATS, "a": FLOATS})
    assert "both 'module.a' and 'a'" in error(path)


# Writing.


def test_writes_views_as_they_look(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    arrays = {"t": FLOATS.reshape(3, 4).T, "step": FLOATS[::-2], "big": FLOATS.astype(">f4")}
    write_safetensors(path, arrays)
    same(read_state_dict(path), {key: array.astype("=f4") for key, array in arrays.items()})


def test_writes_with_the_usual_permissions(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"w": FLOATS})
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_writes_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, b"before")
    with pytest.raises(WeightsError, match=r"weights\.pth: cannot be written \(.*object"):
        write_safetensors(path, {"w": np.array([None])})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="No space left on device"):
        write_safetensors(path, {"w": FLOATS})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, {"w": FLOATS})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "w.safetensors"
    write_safetensors(path, {"w": FLOATS})
    assert list(read_state_dict(path)) == ["w"]


@pytest.mark.parametrize("where", ["weights.pth/w", "folder"])
def test_cannot_write_there(tmp_path: Path, where: str) -> None:
    put(tmp_path, b"a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match="cannot be written"):
        write_safetensors(tmp_path / where, {"w": FLOATS})
    assert sorted(found.name for found in tmp_path.iterdir()) == ["folder", "weights.pth"]


def test_write_pth_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"pip install 'zmar-jax\[torch\]'"):
        write_pth(tmp_path / "w.pth", ARRAYS)
    assert not list(tmp_path.iterdir())


def test_write_pth(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    write_pth(path, ARRAYS)
    assert list(torch.load(path, weights_only=True)) == list(ARRAYS)
    same(read_state_dict(path), ARRAYS)
    with pytest.raises(WeightsError, match="cannot be written"):
        write_pth(path, {"w": np.array([None])})
    same(read_state_dict(path), ARRAYS)
