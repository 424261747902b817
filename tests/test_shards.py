"""Photographs in shards: the same batches as from their folder, at once, and what can go wrong."""

import dataclasses
import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from batches import first, same
from photo_files import write_photos

from zmar_jax import cli
from zmar_jax.config import DataConfig
from zmar_jax.data import DataError, cache
from zmar_jax.data.cache import PixelCache
from zmar_jax.data.pictures import pictures
from zmar_jax.data.pipeline import make_loader
from zmar_jax.data.prepare_photos import Options, prepare_photos
from zmar_jax.data.shards import Record, Shards, read_manifest

SHARE = 0.3
FILES = ("train-00000.array_record", "train-00001.array_record")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `photos`, and the shards of it in `data/photos`."""
    root = tmp_path_factory.mktemp("prepared")
    options = Options(crop=16, val_share=SHARE, shard_bytes=30_000)
    prepare_photos(write_photos(root / "photos"), root / "data", options)
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> DataConfig:
    """The photographs as files."""
    return DataConfig(
        folder=str(prepared / "photos"), val_share=SHARE, data_dir=str(tmp_path / "decoded"),
        batch_size=4, crop=16, workers=0, seed=3,
    )  # fmt: skip


@pytest.fixture
def shards(folder: DataConfig, prepared: Path, tmp_path: Path) -> DataConfig:
    """A copy of the shards, of which no pixels are kept."""
    shutil.copytree(prepared / "data" / "photos", tmp_path / "photos")
    return dataclasses.replace(folder, folder=str(tmp_path / "photos"), cache_gib=0.0)


def quietly(config: DataConfig, *args, **options):
    return make_loader(config, *args, tell=lambda text: None, **options)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("once", [True, False])
def test_batches_are_those_of_the_folder(folder, shards, split, once) -> None:
    """Pictures of all kinds, darkened, exposed and with lost pixels; decoded once or each time."""
    shards = dataclasses.replace(shards, cache_gib=1.0 if once else 0.0)
    ours, theirs = (quietly(c, split, brightness=0.3) for c in (shards, folder))
    assert isinstance(ours.batches.examples.source, PixelCache) == once
    assert ours.fingerprint == theirs.fingerprint
    same(list(itertools.islice(ours, 6)), list(itertools.islice(theirs, 6)))


def test_a_run_may_go_on_with_shards(folder, shards) -> None:
    begun, expected = make_loader(folder, "train"), make_loader(folder, "train")
    first(begun, 2)
    first(expected, 2)
    going_on = quietly(shards, "train")
    going_on.set_state(begun.get_state())
    same(first(going_on, 3), first(expected, 3))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_equal_one(shards, hosts) -> None:
    expected = first(quietly(shards, "train"), 3)
    each = [first(quietly(shards, "train", i, hosts), 3) for i in range(hosts)]
    together = [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
        for step in zip(*each, strict=True)
    ]
    same(together, expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_whatever_the_workers(shards, workers) -> None:
    expected = first(quietly(shards, "train"), 7)
    same(first(quietly(dataclasses.replace(shards, workers=workers), "train"), 7), expected)


def test_nothing_is_read_but_what_a_step_needs(shards, monkeypatch) -> None:
    read, record = [], Shards.record
    monkeypatch.setattr(Shards, "record", lambda self, i: read.append(i) or record(self, i))
    loader = quietly(dataclasses.replace(shards, val_folder=None), "train")
    assert read == []
    loader.set_state(loader.get_state() | {"step": 10**6})
    batch = next(loader)
    # two batches ahead, four pictures each, once for the pixels and once for the name
    assert len(batch["id"]) == 4
    assert len(read) <= 4 * 2 * 4


def test_a_set_pickles_without_its_records(shards) -> None:
    found = pictures(shards, "train")
    expected = found.read(0)[0]
    data = pickle.dumps(found.read.__self__)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).read(0)[0], expected)


def test_prepared_shards_are_chosen_by_size(shards, monkeypatch) -> None:
    def kind(**changes) -> tuple[type, str]:
        told: list[str] = []
        config = dataclasses.replace(shards, **changes)
        loader = make_loader(config, "train", tell=told.append)
        return type(loader.batches.examples.source), " ".join(told)

    assert "decoded anew for each crop: decoded they take 0.0 GiB, more than" in kind()[1]
    monkeypatch.setattr(cache, "MOST", 5)
    assert "to decode more than 5 before the first step would" in kind(cache_gib=1.0)[1]
    monkeypatch.setattr(cache, "MOST", 50)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    assert "has 0.0 free" in kind(cache_gib=1.0)[1]
    monkeypatch.undo()
    assert kind(cache_gib=1.0) == (PixelCache, "")
    monkeypatch.setattr(cache, "MOST", 5)
    assert kind(cache_gib=1.0) == (PixelCache, "")  # it is decoded


# What is wrong.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"{0}: cannot be read \(No such file or directory\); run `zmar-jax prepare "),
        (cut, r"{0}: has \d+ bytes, not \d+: it was cut or replaced; run `zmar-jax prepare photos"),
    ],
)
def test_a_missing_or_cut_shard_is_named_at_once(shards, damage, message) -> None:
    damaged = Path(shards.folder, FILES[1])
    damage(damaged)
    with pytest.raises(DataError, match=message.format(damaged)) as raised:
        quietly(shards, "train")
    again = f"prepare photos --source .*/photos --data-dir {damaged.parent.parent}` again, which"
    raised.match(again)
    assert len(str(raised.value).splitlines()) == 1


def flip_a_bit(path: Path) -> None:
    """In a picture, not in the lists at the end."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 99] ^= 1
    path.write_bytes(data)


def break_a_picture(path: Path, plain: bool = False) -> None:
    """A record that is whole, of a picture that is not; the file keeps its size."""
    records = [Record("ruin", b"\x89PNG\r\n\x1a\n" + b"x" * 900, plain).encode()] * 20
    before = path.stat().st_size
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    assert path.stat().st_size <= before
    with path.open("ab") as file:
        file.truncate(before)


def break_a_plain_one(path: Path) -> None:
    break_a_picture(path, plain=True)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"{0}: record \d+ is damaged \(.*hash mismatch.*\); remove that file and run"),
        (break_a_picture, r"{0}: record \d+ \(ruin\) is damaged \(ruin: cannot be read.*remove"),
        (break_a_plain_one, r"{0}: record \d+ \(ruin\) is damaged \(OpenCV cannot decode it"),
    ],
)
def test_a_damaged_picture_is_named(shards, damage, message, workers) -> None:
    damaged = Path(shards.folder, FILES[0])
    damage(damaged)
    with pytest.raises(DataError, match=message.format(damaged)) as raised:
        first(quietly(dataclasses.replace(shards, workers=workers), "train"), 9)
    assert len(str(raised.value).splitlines()) == 1


def test_the_command_line_says_it_in_one_line(shards, capsys) -> None:
    flip_a_bit(Path(shards.folder, FILES[0]))
    values = {"folder": shards.folder, "val_share": SHARE, "crop": 16, "workers": 0, "cache_gib": 0}
    settings = [f"data.{key}={value}" for key, value in values.items()]
    assert cli.main(["benchmark", "data", *settings, "--seconds", "9"]) == 1
    told, error = capsys.readouterr().err.splitlines()
    assert "decoded anew for each crop" in told
    assert error.startswith(f"error: {shards.folder}/{FILES[0]}: record ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"val_share": 0.1},
            r"prepared with --val-share 0.3, where 0.1 is asked for; set data.val",
        ),
        ({"val_folder": "{}"}, r"prepared with --val-share 0.3, where 0.0 .*leave data.val_folder"),
        ({"name": "pairs"}, r"holds clean photographs in shards; say data.name=photos"),
        ({"crop": 44}, r"photos: \d+ picture\(s\) smaller than 44x44 .*again with --crop 44.*000"),
    ],
)
def test_settings_that_do_not_fit_the_shards(shards, change, message) -> None:
    filled = {k: v.format(shards.folder) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(DataError, match=message):
        quietly(dataclasses.replace(shards, **filled), "train")


def test_a_folder_to_validate_on_is_taken_whole(folder, prepared, tmp_path) -> None:
    options = Options(crop=16, val_share=0.0)
    prepare_photos(prepared / "photos", tmp_path, options)
    whole = dataclasses.replace(folder, val_folder=folder.folder)
    shards = dataclasses.replace(whole, folder=str(tmp_path / "photos"), val_folder=whole.folder)
    both = dataclasses.replace(shards, val_folder=shards.folder)
    expected = [pictures(whole, split).key for split in ("train", "val")]
    assert [pictures(shards, split).key for split in ("train", "val")] == expected
    assert [pictures(both, split).key for split in ("train", "val")] == expected
    with pytest.raises(DataError, match="no photograph falls into the val split"):
        pictures(dataclasses.replace(shards, val_folder=None, val_share=0.0), "val")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(shards, text) -> None:
    manifest = Path(shards.folder, "shards.json")
    assert read_manifest(manifest).format == 1
    manifest.write_text(text)
    with pytest.raises(DataError, match=f"{manifest}: damaged .*again with --overwrite"):
        quietly(shards, "train")


def test_sizes_that_are_missing_are_named(shards) -> None:
    sizes = Path(shards.folder, "train-sizes.npy")
    sizes.unlink()
    with pytest.raises(DataError, match=f"{sizes}: cannot be read"):
        quietly(shards, "train")
