"""Whatever is replaced is the old one or the new one, whole, wherever a write ends."""

import ast
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zmar_jax.config import PRESETS
from zmar_jax.data import DataError, cache, datasets
from zmar_jax.data.sources import Pictures
from zmar_jax.files import replacing
from zmar_jax.imaging.images import ImageError, Photo, read_photo, write_photo
from zmar_jax.torch_port import WeightsError, read_state_dict, write_safetensors
from zmar_jax.weights import checkpoint
from zmar_jax.weights.checkpoint import CheckpointError

ROOT = Path(__file__).parents[1] / "zmar_jax"
MECHANISM = replacing.__file__
ERRORS = (OSError, KeyboardInterrupt, CheckpointError, DataError, ImageError, WeightsError)


class Checkpointer:
    """In place of Orbax's: a file for each item."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None: ...

    def save(self, folder: Path, items: dict, force: bool) -> None:
        assert force
        for name in ("config", "params"):
            (folder / name).mkdir()
        (folder / "params" / "content").write_text(str(items["params"].item))


def save_orbax(path: Path, content: int) -> None:
    checkpoint.save_params(path, content, PRESETS["tiny"])


def decode(path: Path, content: int) -> None:
    """Two caches of one fingerprint hold the same, so none is ever replaced."""
    black = Pictures("p", ("a",), "f", lambda i: (np.full((8, 8, 3), content, np.uint8),))
    cache.open_cache(black, path, 1, lambda *_: None)


def decoded(path: Path) -> int:
    folders = [folder for folder in (path / "cache").glob("p-f") if folder.is_dir()]
    return int(cache.PixelCache(folders[0]).read(0)[0].max()) if folders else 0


class Builder:
    """In place of TensorFlow Datasets': a file for the records."""

    content = 0

    def __init__(self, data_dir: Path, **_: object) -> None:
        self.folder = data_dir / "lol_v1" / datasets.VERSION

    def download_and_prepare(self, **_: object) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "records").write_text(str(self.content))


def prepare(path: Path, content: int) -> None:
    Builder.content = content
    datasets.prepare("lol_v1", "source", path, overwrite=True, warn=print)


REPLACEMENTS: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], int]]] = {
    "text": (
        lambda path, n: replacing.write_whole(path, str(n)),
        lambda path: int(path.read_text()),
    ),
    "photo.png": (
        lambda path, n: write_photo(path, Photo(np.full((2, 2, 3), n, np.uint8))),
        lambda path: int(read_photo(path).rgb.max()),
    ),
    "w.safetensors": (
        lambda path, n: write_safetensors(path, {"w": np.array([n])}),
        lambda path: int(read_state_dict(path)["w"][0]),
    ),
    "orbax": (save_orbax, lambda path: int((path / "params" / "content").read_text())),
    "data": (prepare, lambda path: int((path / "lol_v1/1.0.0/records").read_text())),
}


# an interrupt between opening a file and the `with` block leaves it to be closed by Python
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file")


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(checkpoint.ocp, "Checkpointer", Checkpointer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which is slow
    found = types.SimpleNamespace(pairs=[], root="source", layout="folders", name="lol_v1")
    for name, stand_in in {
        "find_source": lambda *_: found,
        "check_source": lambda *_: None,
        "count_warnings": lambda *_: [],
        "BUILDERS": {"lol_v1": Builder},
        "_manifest": lambda *_: {},
    }.items():
        monkeypatch.setattr(datasets, name, stand_in)
    yield
    gc.collect()


@contextlib.contextmanager
def failing(error: BaseException, line: int) -> Iterator[list[int]]:
    """Raises at the `line`th line of replacing.py that runs; yields the lines that ran."""
    ran: list[int] = []

    def trace(frame: types.FrameType, event: str, _: object) -> Callable | None:
        if frame.f_code.co_filename != MECHANISM:
            return None
        if event == "line":
            ran.append(frame.f_lineno)
            if len(ran) == line:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


def left_over(path: Path) -> list[str]:
    """What lies beside it, but for what the next write removes."""
    names = [entry.name for entry in path.parent.iterdir() if entry != path]
    return [name for name in names if not name.endswith((".tmp", ".replaced", ".preparing"))]


@pytest.mark.parametrize("error", [OSError(5, "broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_failure_between_any_two_steps(name: str, error: BaseException, tmp_path: Path) -> None:
    write, read = REPLACEMENTS[name]
    path = tmp_path / name
    write(path, 1)
    failed, old = 0, 1
    for line in range(1, 200):
        with failing(error, line) as ran:
            try:
                write(path, line + 1)
                ended = True
            except ERRORS:
                ended = False
                failed += 1
        found = read(path)
        assert found in ((line + 1,) if ended else (old, line + 1)), line
        assert not left_over(path), line
        for rubbish in tmp_path.rglob(".*.tmp"):
            shutil.rmtree(rubbish) if rubbish.is_dir() else rubbish.unlink()
        old = found
        if len(ran) < line:
            break
    else:
        pytest.fail("it never ends")
    assert failed > 5


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_step_that_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one comes back where the new one cannot be put in its place."""
    write, read = REPLACEMENTS[name]
    path = tmp_path / name
    write(path, 1)
    for step in range(1, 5):
        calls = []

        def fail(*arguments: object, do: Callable, at: int = step, calls: list = calls) -> object:
            calls.append(do)
            if len(calls) == at:
                raise OSError(28, "No space left on device")
            return do(*arguments)

        with monkeypatch.context() as patch:
            for called in ("rename", "replace", "fsync", "mkdir"):
                do = getattr(os, called)
                patch.setattr(os, called, lambda *a, do=do, fail=fail: fail(*a, do=do))
            with contextlib.suppress(*ERRORS):
                write(path, step + 1)
                assert read(path) == step + 1
        assert read(path) in range(1, step + 2)
        assert not [entry for entry in tmp_path.rglob(".*") if entry.name.endswith(".tmp")]


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


def test_an_interrupt_after_the_last_step_leaves_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new = folder_of(tmp_path / "a", "old"), folder_of(tmp_path / "b", "new")
    rename = os.rename

    def interrupted(source: Path, goal: Path) -> None:
        rename(source, goal)
        if goal == target:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replacing.replace_folder(new, target)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (target / "content").read_text() == "new"


def test_the_new_one_is_there_though_the_old_one_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new = folder_of(tmp_path / "a", "old"), folder_of(tmp_path / "b", "new")
    rename = os.rename

    def failing_aside(source: Path, goal: Path) -> None:
        if source.name == ".a.replaced":
            raise OSError(5, "broken")
        rename(source, goal)

    monkeypatch.setattr(os, "rename", failing_aside)
    replacing.replace_folder(new, target)  # an error would say that the target is as it was
    assert (target / "content").read_text() == "new"


def test_a_cache_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    line = 0
    while line < 200 and not decoded(tmp_path):
        line += 1
        with failing(KeyboardInterrupt(), line), contextlib.suppress(KeyboardInterrupt):
            decode(tmp_path, 7)
    assert decoded(tmp_path) == 7
    assert line > 5
    decode(tmp_path, 8)
    assert decoded(tmp_path) == 7


KILLED = """
import importlib.util, json, os, shutil, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("replacing", sys.argv[1])
replacing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replacing)
os.fsync = lambda _: None
folder, file = Path(sys.argv[2]) / "folder", Path(sys.argv[2]) / "file"

def write(content):
    with replacing.whole_folder(folder) as new:
        (new / "content").write_text(content)
    replacing.write_whole(file, content)

def killed_at(line):
    ran = []
    def trace(frame, event, _):
        if frame.f_code.co_filename != sys.argv[1]:
            return None
        if event == "line":
            ran.append(frame.f_lineno)
            if len(ran) == line:
                os._exit(9)
        return trace
    child = os.fork()
    if not child:
        sys.settrace(trace)
        write("new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

write("old")
found, line, code = [], 0, 9
while code == 9 and line < 200:
    line += 1
    code = killed_at(line)
    missing = not folder.exists()
    replacing.put_back(folder)
    found.append((code, missing, (folder / "content").read_text(), file.read_text()))
    for rubbish in folder.parent.glob(".*.tmp"):
        shutil.rmtree(rubbish) if rubbish.is_dir() else rubbish.unlink()
    write("old")
print(json.dumps(found))
"""


def test_a_process_that_is_killed_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, MECHANISM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes, missing, *contents = zip(*json.loads(done.stdout), strict=True)
    assert codes[-1] == 0
    assert len(codes) > 40
    assert any(missing)  # so that putting back was tried
    for content in contents:
        assert list(content) == sorted(content, reverse=True)  # the old one, and then the new one
        assert set(content) == {"old", "new"}


def test_what_a_killed_process_replaced_is_found(tmp_path: Path) -> None:
    """Readers and writers put it back first."""
    (tmp_path / ".lol_v1.replaced" / datasets.VERSION).mkdir(parents=True)
    with pytest.raises(DataError, match="not prepared"):
        datasets.open_prepared("lol_v1", tmp_path, "train")
    assert (tmp_path / "lol_v1" / datasets.VERSION).is_dir()
    (tmp_path / "lol_v1").rename(tmp_path / ".lol_v1.replaced")
    with pytest.raises(DataError, match="is no prepared set, so it is not replaced"):
        prepare(tmp_path, 1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_reader_that_looks_between_the_two_renames(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may put the old one back; the write goes on, or fails and leaves what was there."""
    target, rename, looked = tmp_path / "target", os.rename, []

    def look_before(source: Any, goal: Any) -> None:
        if goal == target and Path(source).name == "new" and len(looked) < times:
            looked.append(goal)
            replacing.put_back(target)
        rename(source, goal)

    target.mkdir()
    (target / "content").write_text("old")
    monkeypatch.setattr(os, "rename", look_before)
    expected = pytest.raises(OSError, match="not empty") if times > 1 else contextlib.nullcontext()
    with expected, replacing.whole_folder(target) as new:
        (new / "content").write_text("new")
    assert len(looked) == times
    assert (target / "content").read_text() == ("old" if times > 1 else "new")
    assert os.listdir(tmp_path) == ["target"]


def test_a_link_to_a_folder_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    for name in ("far", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / "near").symlink_to("far")
    replacing.replace_folder(tmp_path / "new", tmp_path / "near")
    assert (tmp_path / "near" / "content").read_text() == "new"
    assert (tmp_path / "far" / "content").read_text() == "far"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "near"]


MOVES = {"rename", "renames", "replace", "move", "write_text", "write_bytes", "open"}
ELSEWHERE = {
    "demo/app.py": "an upload is written into a temporary folder of its own",
    "demo/pictures.py": "moves an upload in that folder",
    "train/checkpoints.py": "moves a damaged checkpoint to a name that is free",
}


def replaces(call: ast.Call) -> bool:
    """Whether the call may replace a file, by how it looks."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in MOVES:
        return False
    if name == "replace":  # of paths; those of text have two arguments, of dataclasses a keyword
        module = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "os"
        return module or (len(call.args) == 1 and not call.keywords)
    if name == "open":
        words = (a.value for a in call.args if isinstance(a, ast.Constant))
        return any(str(word).startswith("w") for word in words)
    return True


def test_nothing_else_replaces_anything() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and replaces(node)
    }
    assert found == {"files/replacing.py", *ELSEWHERE}
