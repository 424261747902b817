"""A folder of photographs becomes a set of shards: whole or not at all, going on where it ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from photo_files import pixels, write_photos
from PIL import Image

from zmar_jax import cli
from zmar_jax.config import DataConfig
from zmar_jax.data import DataError
from zmar_jax.data.pictures import pictures
from zmar_jax.data.prepare_photos import Options, prepare_photos
from zmar_jax.data.shards import Manifest, read_manifest
from zmar_jax.files.lock import take

SMALL = Options(crop=16, val_share=0.3, shard_bytes=10_000)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def prepare(photos: Path, options: Options = SMALL, **more) -> Manifest:
    return prepare_photos(photos, photos.parent / "data", options, **more)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What all files hold, and when they were written."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in snapshot(folder).items()}


def test_every_file_is_kept_byte_for_byte(photos: Path) -> None:
    manifest = prepare(photos)
    assert read_manifest(photos.parent / "data/photos/shards.json") == manifest
    for split in ("train", "val"):
        files, kept = (
            pictures(DataConfig(folder=str(folder), val_share=0.3), split)
            for folder in (photos, photos.parent / "data/photos")
        )
        assert list(kept.ids) == list(files.ids)
        assert kept.fingerprint == files.fingerprint == manifest.splits[split].fingerprint
        shards = kept.read.__self__
        for i, id_ in enumerate(files.ids):
            (path,) = photos.glob(f"{id_}.*")
            assert shards.record(i)[:2] == (id_, path.read_bytes())
            # those that are turned or have 16 bits are not
            assert shards.record(i).plain == (id_ not in ("turned", "sixteen"))
            assert tuple(kept.sizes[i]) == kept.read(i)[0].shape[:2]
    assert [part.count for part in manifest.splits.values()] == [14, 2]
    assert len(manifest.splits["train"].shards) > 2
    assert sorted(p.name for p in (photos.parent / "data").iterdir()) == ["photos"]


@pytest.mark.slow
def test_processes_write_what_one_writes(photos: Path, tmp_path: Path) -> None:
    prepare(photos)
    for workers in (1, 3):
        options = Options(**{**vars(SMALL), "workers": workers})
        prepare_photos(photos, tmp_path / str(workers), options)
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "data")


def test_broken_and_small_photographs_are_all_named_or_left_out(photos: Path) -> None:
    (photos / "003.png").write_bytes(b"nonsense")
    (photos / "005.png").write_bytes((photos / "006.png").read_bytes()[:900])
    Image.fromarray(pixels(0, (15, 90))).save(photos / "flat.png")
    with pytest.raises(DataError, match=r"3 photograph\(s\) cannot be used: ") as raised:
        prepare(photos)
    for said in ("003.png: cannot be read", "005.png: cannot be read", "flat.png (90x15), smaller"):
        assert said in str(raised.value)
    raised.match("--skip-broken; the others are kept")
    assert not (photos.parent / "data/photos").exists()
    told: list[str] = []
    skipping = Options(**{**vars(SMALL), "skip_broken": True})
    manifest = prepare(photos, skipping, tell=told.append)
    (line,) = told
    assert "shards are there already; going on" in line
    assert sum(part.count for part in manifest.splits.values()) == 14
    assert sum(len(part.left_out) for part in manifest.splits.values()) == 3
    # as of a folder without them
    for name in ("003.png", "005.png", "flat.png"):
        (photos / name).unlink()
    files, kept = (
        pictures(DataConfig(folder=str(folder), val_share=0.3), "train")
        for folder in (photos, photos.parent / "data/photos")
    )
    assert files.key == kept.key


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: (p / "low").mkdir(), SMALL, "--clean if all of it is clean"),
        (lambda p: None, Options(crop=60), r"16 photograph.*no photograph is left to train on"),
        (lambda p: None, Options(crop=60, skip_broken=True), "no photograph is left to train on"),
        (lambda p: None, Options(val_share=0.999), "no photograph is left to train on; lower"),
        (lambda p: p.rename(p.parent / "elsewhere"), SMALL, "no such folder"),
        (lambda p: (p.parent / "data/photos").mkdir(parents=True), SMALL, "choose another --data"),
    ],
)
def test_what_cannot_be_prepared_is_said(photos: Path, make, options, message) -> None:
    make(photos)
    if message.startswith("--clean"):
        Image.fromarray(pixels(0)).save(photos / "low" / "a.png")
    with pytest.raises(DataError, match=message):
        prepare(photos, options)
    assert not (photos.parent / "data/photos/shards.json").exists()


KILLED = """
import contextlib, os, signal, sys
from zmar_jax.data.prepare_photos import Options, prepare_photos

@contextlib.contextmanager
def progress(total, verb):
    done = []
    def step(source, target, error):
        done.append(error)
        if len(done) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    yield step

options = Options(crop=16, val_share=0.3, shard_bytes=10_000)
prepare_photos(sys.argv[1], sys.argv[2], options, True, progress)
"""


@pytest.mark.parametrize("there", [False, True])
def test_killed_and_run_again_it_goes_on(photos: Path, tmp_path: Path, there: bool) -> None:
    expected = prepare_photos(photos, tmp_path / "undisturbed", SMALL)
    if there:
        prepare(photos, Options(**{**vars(SMALL), "crop": 20}))
    before = snapshot(tmp_path / "data/photos")
    command = [sys.executable, "-c", KILLED, str(photos), str(tmp_path / "data"), "9"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert snapshot(tmp_path / "data/photos") == before
    place = tmp_path / "data/.photos.preparing"
    whole = {name: file for name, file in snapshot(place).items() if name.endswith("_record")}
    assert 0 < len(whole) < sum(len(part.shards) for part in expected.splits.values())
    assert list(place.glob(".*.partial"))
    told: list[str] = []
    assert prepare(photos, overwrite=there, tell=told.append) == expected
    assert told == [f"{len(whole)} of {_shards(expected)} shards are there already; going on"]
    after = snapshot(tmp_path / "data/photos")
    assert {name: after[name] for name in whole} == whole  # the very files
    assert contents(tmp_path / "data/photos") == contents(tmp_path / "undisturbed/photos")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["photos"]


def _shards(manifest: Manifest) -> int:
    return sum(len(part.shards) for part in manifest.splits.values())


def test_a_photograph_that_changed_meanwhile_is_written_again(photos: Path, tmp_path) -> None:
    command = [sys.executable, "-c", KILLED, str(photos), str(tmp_path / "data"), "9"]
    subprocess.run(command, capture_output=True)
    Image.fromarray(pixels(77)).save(photos / "000.png")
    assert prepare(photos) == prepare_photos(photos, tmp_path / "undisturbed", SMALL)
    assert contents(tmp_path / "data/photos") == contents(tmp_path / "undisturbed/photos")


def test_a_shard_that_is_gone_is_written_again(photos: Path) -> None:
    manifest, folder = prepare(photos), photos.parent / "data" / "photos"
    before = snapshot(folder)
    lost = manifest.splits["train"].shards[1].file
    (folder / lost).unlink()
    told: list[str] = []
    # whatever is asked for, the set stays what it is
    assert prepare(photos, Options(), tell=told.append) == manifest
    assert f"1 of {_shards(manifest)} shards are missing or cut: writing them again" in told[0]
    after = snapshot(folder)
    assert contents(folder) == {name: content for name, (content, _) in before.items()}
    assert {n for n in before if before[n] != after[n]} == {lost}
    assert [path.name for path in folder.parent.iterdir()] == ["photos"]
    with pytest.raises(DataError, match=r"is prepared already; give --overwrite"):
        prepare(photos)
    assert [path.name for path in folder.parent.iterdir()] == ["photos"]


def test_a_shard_of_a_source_that_changed_is_not_made_up(photos: Path) -> None:
    manifest, folder = prepare(photos), photos.parent / "data" / "photos"
    lost = folder / manifest.splits["train"].shards[0].file
    before = snapshot(folder)
    lost.unlink()
    del before[lost.name]
    for path in photos.glob("*.png"):
        Image.fromarray(pixels(9)).save(path)
    with pytest.raises(DataError, match=r"not those of the source any more; give --overwrite"):
        prepare(photos)
    assert snapshot(folder) == before


def test_a_set_is_replaced_only_when_told_to(photos: Path) -> None:
    prepare(photos)
    with pytest.raises(DataError, match="is prepared already; give --overwrite"):
        prepare(photos, Options(crop=16))
    assert prepare(photos, Options(crop=16), overwrite=True).val_share == 0.1


def test_two_at_once_do_not_meet(photos: Path) -> None:
    lock = take(photos.parent / "data/.photos.preparing")
    with pytest.raises(DataError, match="another process is preparing photographs here; wait"):
        prepare(photos)
    lock.release()
    prepare(photos)


FULL_DISK = """
import resource, signal, sys
from zmar_jax.data import DataError
from zmar_jax.data.prepare_photos import Options, prepare_photos
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    prepare_photos(*sys.argv[1:], Options(crop=16))
except DataError as e:
    sys.exit(str(e))
"""


def test_a_full_disk_is_one_clear_error(photos: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(photos), str(photos.parent / "data")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{photos.parent}/data/photos: cannot be prepared (")
    assert len(done.stderr.splitlines()) == 1
    assert not (photos.parent / "data/photos").exists()


def test_names_need_not_be_utf_8(photos: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    Image.fromarray(pixels(1)).save(photos / f"{name}.png")
    prepare(photos, Options(crop=16, val_share=0.0))
    kept = pictures(DataConfig(folder=f"{photos.parent}/data/photos", val_share=0.0), "train")
    files = pictures(DataConfig(folder=str(photos), val_share=0.0), "train")
    assert name in kept.ids
    assert kept.key == files.key


def test_the_command(photos: Path, capsys) -> None:
    data = photos.parent / "data"
    command = f"prepare photos --source {photos} --data-dir {data} --workers 0 --crop 16".split()
    assert cli.main([*command, "--val-share", "0.3"]) == 0
    captured = capsys.readouterr()
    for said in ("photographs, 1 shards", f"data.folder={data}/photos data.val_share=0.3"):
        assert said in captured.out
    assert "writing" in captured.err
    assert "16/16" in captured.err
    assert cli.main(command) == 1
    assert "is prepared already; give --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    assert "zmar-jax prepare photos --source" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_is_killed_and_its_processes_with_it(tmp_path: Path) -> None:
    """Two processes write; the one that the user sees is killed when a part is there."""
    source = tmp_path / "photos"
    source.mkdir()
    for i in range(40):
        Image.fromarray(np.roll(pixels(1, (700, 700)), i, 0)).save(source / f"{i:03}.png")
    command = [sys.executable, "-m", "zmar_jax", "prepare", "photos", "--source", str(source)]
    command += ["--data-dir", str(tmp_path / "data"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    place, deadline = tmp_path / "data/.photos.preparing", time.monotonic() + 60
    while not (whole := list(place.glob("*.json"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = [
        int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(children) >= 2
    process.kill()
    process.wait()
    while alive := [pid for pid in children if _runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    kept = {path.with_suffix(".array_record"): 0 for path in place.glob("*.json")}
    kept = {path: path.stat().st_ino for path in kept}
    assert len(kept) >= len(whole)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "shards are there already; going on" in done.stderr
    for path, file in kept.items():
        assert (tmp_path / "data/photos" / path.name).stat().st_ino == file
    options = Options(workers=0)
    expected = prepare_photos(source, tmp_path / "undisturbed", options)
    assert read_manifest(tmp_path / "data/photos/shards.json") == expected
    assert contents(tmp_path / "data/photos") == contents(tmp_path / "undisturbed/photos")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
