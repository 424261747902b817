"""Preparing the benchmarks and reading them back: bytes, sizes, splits, and what can go wrong."""

import dataclasses
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import first, same
from benchmark_folders import LAYOUTS, SIZE, make, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zmar_jax import __version__, cli
from zmar_jax.config import DataConfig
from zmar_jax.config.data import BENCHMARKS
from zmar_jax.data import DataError, datasets
from zmar_jax.data.datasets import BUILDERS, open_prepared, prepare, verify
from zmar_jax.data.frames import resize_frame
from zmar_jax.data.pipeline import make_loader

CROP = min(SIZE)


def silent(message: str) -> None:
    """Counts of tiny sets always differ from the published ones."""


@pytest.fixture
def lol(tmp_path) -> Path:
    make("lol_v1", tmp_path / "source")
    return tmp_path


def prepare_lol(folder: Path, **options):
    return prepare("lol_v1", folder / "source", folder / "data", CROP, warn=silent, **options)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", LAYOUTS)
def test_every_benchmark_in_every_layout(key, tmp_path, capfd):
    name = make(key, tmp_path / "source")
    manifest = prepare(name, tmp_path / "source", tmp_path / "data", CROP, warn=silent)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    for split, (low, gt, ids) in LAYOUTS[key].items():
        prepared = open_prepared(name, tmp_path / "data", split)
        assert prepared.ids == ids
        assert len(prepared) == manifest["splits"][split]["count"] == len(ids)
        for index, id_ in enumerate(ids):
            files = [
                tmp_path / "source" / template.format(id_, scene=id_.partition("/")[0])
                for template in (low, gt)
            ]
            found, *images = prepared[index]
            assert found == id_
            assert prepared.sizes[index] == images[0].shape[:2] == images[1].shape[:2]
            for file, image, encoded in zip(files, images, prepared.encoded(index), strict=True):
                assert image.dtype == np.uint8
                if file.suffix == ".png":
                    assert encoded == file.read_bytes()
                    assert np.array_equal(image, np.asarray(Image.open(file)))
                else:
                    rgb = np.load(file)[..., ::-1].astype(np.float32) / 255
                    expected = cv2.resize(rgb, (960, 512), interpolation=cv2.INTER_LINEAR)
                    assert image.shape == (512, 960, 3)
                    assert np.abs(image / 255 - expected).max() < 1 / 255
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]


def test_the_names_are_those_of_the_configuration(capsys):
    assert tuple(BUILDERS) == BENCHMARKS
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    assert ",".join(BENCHMARKS) in capsys.readouterr().out


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([np.uint8, np.float32, np.float64, np.float16]),
)
@settings(max_examples=10, deadline=None)
def test_resizing_is_bilinear_between_pixel_centres(height, width, dtype):
    frame = np.random.default_rng(height).uniform(0, 255, (height, width, 3)).astype(dtype)

    def along(pixels, size, axis):
        count = pixels.shape[axis]
        at = (np.arange(size) + 0.5) * count / size - 0.5
        return np.apply_along_axis(lambda v: np.interp(at, np.arange(count), v), axis, pixels)

    expected = along(along(frame.astype(np.float64), 512, 0), 960, 1)
    resized = resize_frame(frame)
    assert resized.dtype == np.uint8
    assert np.abs(resized - expected).max() <= 0.5 + 1e-2


def test_resizing_clips_what_overshoots():
    frame = np.full((4, 4, 3), -3.0)
    frame[..., 0] = 259
    assert np.array_equal(np.unique(resize_frame(frame)[..., 0]), [255])
    assert np.array_equal(np.unique(resize_frame(frame)[..., 1:]), [0])


def test_tensorflow_datasets_reads_it_without_our_code(lol):
    prepare_lol(lol)
    builder = tfds.builder_from_directory(lol / "data/lol_v1/1.0.0")
    assert builder.info.splits["train"].num_examples == 3
    source = builder.as_data_source("test")
    assert source[1]["id"] == b"493"
    expected = Image.open(lol / "source/eval15/high/493.png")
    assert np.array_equal(source[1]["gt"], np.asarray(expected))


def test_the_builder_alone_takes_a_manual_dir(tmp_path, capsys):
    source = tmp_path / "downloads"
    for split, scale in (("our485", 40), ("eval15", 41)):
        for kind in ("low", "high"):
            (source / split / kind).mkdir(parents=True)
            write(source / split / kind / "1.png", np.full((160, 170, 3), scale, np.uint8))
    config = tfds.download.DownloadConfig(manual_dir=source)
    builder = tfds.builder("lol_v1", data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=config)
    assert builder.as_data_source("test")[0]["low"][0, 0, 0] == 41
    capsys.readouterr()


def test_more_examples_than_a_record_file_holds(lol, monkeypatch):
    monkeypatch.setattr(datasets, "_SHARD", 2)
    prepare_lol(lol)
    assert len(list((lol / "data").rglob("*train.array_record*"))) == 2
    train = open_prepared("lol_v1", lol / "data", "train")
    assert [example[0] for example in train] == ["1", "22", "3"]
    assert verify("lol_v1", lol / "data") == 5


def test_the_manifest_tells_all(lol):
    returned = prepare_lol(lol)
    manifest = json.loads((lol / "data/lol_v1/1.0.0/manifest.json").read_text())
    assert manifest == returned
    assert manifest["name"] == "lol_v1"
    assert manifest["zmar_jax"] == __version__
    assert manifest["source"] == str(lol / "source")
    assert manifest["layout"].startswith("our485/low")
    assert manifest["crop"] == CROP
    test = manifest["splits"]["test"]
    assert [(e["id"], e["height"], e["width"]) for e in test["examples"]] == [
        ("1", *SIZE),
        ("493", *SIZE),
    ]
    checksums = {e["checksum"] for part in manifest["splits"].values() for e in part["examples"]}
    assert len(checksums) == 5


def test_the_fingerprint_follows_the_pixels(lol):
    first = prepare_lol(lol)["splits"]
    again = prepare_lol(lol, overwrite=True)["splits"]
    assert again == first
    path = lol / "source/our485/low/22.png"
    image = np.array(Image.open(path))
    image[0, 0, 0] ^= 1
    write(path, image)
    changed = prepare_lol(lol, overwrite=True)["splits"]
    assert changed["train"]["fingerprint"] != first["train"]["fingerprint"]
    assert changed["test"]["fingerprint"] == first["test"]["fingerprint"]
    assert first["test"]["fingerprint"] != first["train"]["fingerprint"]


def test_ids_and_sizes_need_no_records(lol):
    prepare_lol(lol)
    for file in (lol / "data").rglob("*array_record*"):
        file.unlink()
    train = open_prepared("lol_v1", lol / "data", "train")
    assert train.ids == ("1", "22", "3")
    assert train.sizes == (SIZE,) * 3
    assert len(train.fingerprint) == 32
    with pytest.raises(DataError, match="train example 1 is damaged"):
        train[0]


def test_indices_are_those_of_a_sequence(lol):
    prepare_lol(lol)
    train = open_prepared("lol_v1", lol / "data", "train")
    assert train[-1][0] == train[2][0] == "3"
    for index in (3, -4):
        with pytest.raises(IndexError):
            train[index]


def test_a_worker_may_be_given_it(lol):
    prepare_lol(lol)
    train = open_prepared("lol_v1", lol / "data", "train")
    first = train[0]
    copy = pickle.loads(pickle.dumps(train))
    assert copy[0][0] == first[0]
    assert np.array_equal(copy[0][1], first[1])


def test_a_damaged_record_is_named(lol):
    manifest = prepare_lol(lol)
    path = lol / "data/lol_v1/1.0.0/manifest.json"
    assert verify("lol_v1", lol / "data") == 5
    examples = manifest["splits"]["train"]["examples"]
    examples[1]["checksum"] = "0" * 32
    manifest["splits"]["train"]["fingerprint"] = datasets.fingerprint("lol_v1", "train", examples)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train example 22 is damaged .*--overwrite"):
        open_prepared("lol_v1", lol / "data", "train")[1]
    with pytest.raises(DataError, match="1 of 5 are damaged") as raised:
        verify("lol_v1", lol / "data")
    assert "example 22" in str(raised.value)


def test_damaged_bytes_are_found(lol):
    prepare_lol(lol)
    (file,) = (lol / "data").rglob("*train.array_record*")
    data = bytearray(file.read_bytes())
    at = data.index(b"IDAT") if b"IDAT" in data else len(data) // 2
    data[at + 20] ^= 255
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="are damaged"):
        verify("lol_v1", lol / "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"name": "sid", "splits": {"train": {"fingerprint": 1, "examples": []}}}', "fingerprint"),
    ],
)
def test_a_damaged_manifest(text, message, lol):
    prepare_lol(lol)
    path = lol / "data/lol_v1/1.0.0/manifest.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        open_prepared("lol_v1", lol / "data", "train")
    assert str(path) in str(raised.value)
    assert "--overwrite" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("sid", "train", r"run `zmar-jax prepare sid --source FOLDER --data-dir .*data`"),
        ("lol_v1", "val", "expected train or test"),
        ("photos", "train", "expected one of lol_v1"),
    ],
)
def test_what_cannot_be_opened(name, split, message, lol):
    prepare_lol(lol)
    with pytest.raises(DataError, match=message):
        open_prepared(name, lol / "data", split)


def test_a_malformed_source_writes_nothing(lol):
    (lol / "source/our485/high/22.png").write_bytes(b"")
    with pytest.raises(DataError, match="nothing was written"):
        prepare_lol(lol)
    assert not (lol / "data").exists()


def test_smaller_than_the_crop_is_an_error_here(lol):
    with pytest.raises(DataError, match="smaller than the crop 160x160"):
        prepare("lol_v1", lol / "source", lol / "data", warn=silent)


def test_nothing_is_replaced_unless_told(lol):
    prepare_lol(lol)
    before = snapshot(lol / "data")
    with pytest.raises(DataError, match="--overwrite"):
        prepare_lol(lol)
    assert snapshot(lol / "data") == before


def test_nothing_foreign_is_ever_replaced(lol):
    (lol / "source").rename(lol / "lol_v1")
    for kind in ("", "1.0.0"):
        (lol / "lol_v1" / kind).mkdir(exist_ok=True)
        before = snapshot(lol)
        with pytest.raises(DataError, match="choose another --data-dir"):
            prepare("lol_v1", lol, lol, CROP, overwrite=True, warn=silent)
        assert snapshot(lol) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_the_same_without_decoding_first(lol, split):
    prepare_lol(lol)
    config = DataConfig(
        name="lol_v1", data_dir=str(lol / "data"), batch_size=2, crop=CROP, workers=0
    )
    told: list[str] = []
    direct = make_loader(dataclasses.replace(config, cache_gib=0.0), split, tell=told.append)
    assert [line for line in told if "3 pictures are decoded anew" in line or split == "val"]
    assert not (lol / "data" / "cache").exists()
    once = make_loader(config, split)
    assert (lol / "data" / "cache").exists()
    assert direct.fingerprint == once.fingerprint
    same(first(direct, 2), first(once, 2))


def test_a_damaged_example_is_named_when_it_is_drawn(lol):
    prepare_lol(lol)
    config = DataConfig(
        name="lol_v1", data_dir=str(lol / "data"), batch_size=2, crop=CROP, workers=0, cache_gib=0.0
    )
    loader = make_loader(config, "train", tell=silent)
    (record,) = (lol / "data/lol_v1/1.0.0").glob("lol_v1-train.array_record-*")
    data = bytearray(record.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    record.write_bytes(data)
    with pytest.raises(DataError, match=r"lol_v1/1\.0\.0: train example .* is damaged .*prepare"):
        first(loader, 4)


def test_a_tilde_is_the_home_folder(lol, monkeypatch):
    monkeypatch.setenv("HOME", str(lol))
    (lol / "data" / "lol_v1").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{lol}/data/lol_v1: is no prepared set"):
        prepare("lol_v1", "~/source", "~/data", CROP, warn=silent)
    with pytest.raises(DataError, match=f"{lol}/data/lol_v1/.*: lol_v1 is not prepared"):
        datasets.open_prepared("lol_v1", "~/data", "test")


def test_a_failed_overwrite_leaves_the_old_set(lol, monkeypatch):
    prepare_lol(lol)
    before = snapshot(lol / "data")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "_manifest", fail)
    with pytest.raises(DataError, match="No space left"):
        prepare_lol(lol, overwrite=True)
    assert snapshot(lol / "data") == before
    assert [path.name for path in (lol / "data").iterdir()] == ["lol_v1"]


FULL_DISK = """
import resource, signal, sys
from zmar_jax.data import DataError, datasets
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
try:
    datasets.prepare("lol_v1", *sys.argv[1:], 16, warn=print)
except DataError as e:
    sys.exit(str(e))
"""


def test_a_full_disk_is_one_clear_error(lol):
    command = [sys.executable, "-c", FULL_DISK, str(lol / "source"), str(lol / "data")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{lol / 'data/lol_v1'}: lol_v1 cannot be prepared (")
    assert list((lol / "data").iterdir()) == []


KILLED = """
import contextlib, os, signal, sys
from zmar_jax.data import datasets

@contextlib.contextmanager
def progress(total, verb):
    done = []
    def step(low, gt, error):
        done.append(low)
        if [verb, str(len(done))] == sys.argv[3:]:
            os.kill(os.getpid(), signal.SIGKILL)
    yield step

datasets.prepare("lol_v1", sys.argv[1], sys.argv[2], 16, True, progress, print)
"""


@pytest.mark.parametrize(("verb", "there"), [("writing", True), ("reading back", False)])
def test_killed_in_the_middle_and_run_again(verb, there, lol):
    before = {}
    if there:
        prepare_lol(lol)
        before = snapshot(lol / "data/lol_v1")
    where = [str(lol / "source"), str(lol / "data")]
    done = subprocess.run([sys.executable, "-c", KILLED, *where, verb, "4"], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (lol / "data/.lol_v1.preparing").exists()
    assert snapshot(lol / "data/lol_v1") == before
    if not there:
        with pytest.raises(DataError, match="not prepared"):
            open_prepared("lol_v1", lol / "data", "train")
    # nothing of the first run may be used again
    file = lol / "source/our485/low/1.png"
    write(file, np.full((*SIZE, 3), 7, np.uint8))
    prepare_lol(lol, overwrite=there)
    assert [path.name for path in (lol / "data").iterdir()] == ["lol_v1"]
    assert verify("lol_v1", lol / "data") == 5
    assert open_prepared("lol_v1", lol / "data", "train").encoded(0)[0] == file.read_bytes()


def test_two_at_once_do_not_meet(lol):
    place = lol / "data/.lol_v1.preparing"
    place.mkdir(parents=True)
    (place / "work").mkdir()
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(DataError, match="another process is preparing lol_v1"):
            prepare_lol(lol)
        assert (place / "work").exists()
    finally:
        os.close(lock)
    prepare_lol(lol)
    assert not place.exists()


def test_other_counts_than_published_are_a_warning(lol):
    with pytest.warns(UserWarning, match="the published set has") as caught:
        prepare("lol_v1", lol / "source", lol / "data", CROP)
    assert [str(w.message) for w in caught] == [
        "lol_v1: 3 pairs to train, the published set has 485",
        "lol_v1: 2 pairs to test, the published set has 15",
    ]


def test_the_command(lol, capsys):
    arguments = ["prepare", "lol_v1", "--source", str(lol / "source")]
    arguments += ["--data-dir", str(lol / "data"), "--crop", str(CROP)]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    for line in ("3 pairs", "2 pairs", "our485/low"):
        assert line in captured.out
    assert "warning: lol_v1: 3 pairs to train, the published set has 485" in captured.err
    assert verify("lol_v1", lol / "data") == 5
    assert cli.main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_the_command_lists_every_offender(lol, capsys):
    for name in ("1.png", "22.png"):
        (lol / "source/our485/low" / name).unlink()
    arguments = ["prepare", "lol_v1", "--source", str(lol / "source"), "--crop", str(CROP)]
    assert cli.main([*arguments, "--data-dir", str(lol / "data")]) == 1
    error = capsys.readouterr().err
    for name in ("1.png", "22.png"):
        assert f"{lol / 'source/our485/high' / name}: no partner" in error
    assert not (lol / "data").exists()


def test_neither_the_command_line_nor_reading_needs_tensorflow():
    code = (
        "import sys, zmar_jax.cli\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "import zmar_jax.data.datasets\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
