"""Prepared sets in an emulated bucket are copied to this machine's cache, and read from there."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")
from batches import first, same
from benchmark_folders import make
from emulators import Fault, Gate, emulator
from photo_files import write_photos
from PIL import Image

from zmar_jax.config import DataConfig
from zmar_jax.data import DataError
from zmar_jax.data.datasets import prepare
from zmar_jax.data.pictures import pictures
from zmar_jax.data.pipeline import make_loader
from zmar_jax.data.prepare_photos import Options, prepare_photos
from zmar_jax.data.prepared import open_prepared
from zmar_jax.files.mirror import Mirror
from zmar_jax.files.places import PlaceError, _filesystem, kept


def test_a_prepared_set_is_read_from_a_bucket(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ZMAR_JAX_CACHE", str(tmp_path / "cache"))
    make("lol_v1", tmp_path / "source")
    prepare("lol_v1", tmp_path / "source", tmp_path / "data", 16, warn=lambda text: None)
    local = open_prepared("lol_v1", tmp_path / "data", "test")
    with emulator("gs", tmp_path / "log") as (gate, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        _filesystem("gs").clear_instance_cache()
        url = "gs://bucket/data"
        with pytest.raises(DataError, match=f"{url}/lol_v1/1.0.0: lol_v1 is not prepared"):
            open_prepared("lol_v1", url, "test")
        Mirror(tmp_path / "data", url).push()
        remote = open_prepared("lol_v1", url, "test")
        assert remote.fingerprint == local.fingerprint
        assert [remote.encoded(i) for i in range(2)] == [local.encoded(i) for i in range(2)]
        before = len(gate.seen)
        assert open_prepared("lol_v1", url, "train").ids == ("1", "22", "3")
        assert len(gate.seen) - before <= 2  # the manifest alone
        _filesystem("gs").clear_instance_cache()
    assert kept(url).is_relative_to(tmp_path / "cache")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setenv("ZMAR_JAX_CACHE", str(tmp_path / "cache"))
    with emulator("gs", tmp_path / "log") as (gate, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        _filesystem("gs").clear_instance_cache()
        yield gate
        _filesystem("gs").clear_instance_cache()


def test_shards_are_fetched_whole_and_once(bucket: Gate, tmp_path: Path) -> None:
    url, data = "gs://bucket/photos", tmp_path / "data" / "photos"
    options = Options(crop=16, val_share=0.3, shard_bytes=30_000)
    prepare_photos(write_photos(tmp_path / "photos"), tmp_path / "data", options)
    local = DataConfig(
        folder=str(data), val_share=0.3, data_dir=str(tmp_path), batch_size=4, crop=16, workers=0
    )
    remote = dataclasses.replace(local, folder=url)
    with pytest.raises(DataError, match=f"{url}: no photographs in shards"):
        pictures(remote, "train")
    Mirror(data, url).push()
    # it breaks in the middle, and goes on
    refused = Fault("GET .*train-00002", status=403)
    bucket.faults.append(refused)
    with pytest.raises(PlaceError, match="cannot be read"):
        pictures(remote, "train")
    bucket.faults.clear()
    names = {path.name for path in data.iterdir()} - {"shards.json"}
    there = {path.name for path in kept(url).iterdir()} & names
    assert "train-00002.array_record" in names - there
    assert there
    said, before = [], len(bucket.seen)
    same(
        first(make_loader(remote, "train", progress=lambda *args: said.append(args)), 3),
        first(make_loader(local, "train"), 3),
    )
    lacking = len(names - there)
    fetching = [counts for what, *counts in said if what == f"fetching shards of {url}"]
    assert fetching == [[done, lacking] for done in range(1, lacking + 1)]
    assert not [line for line in bucket.seen[before:] if any(name in line for name in there)]
    before = len(bucket.seen)
    assert pictures(remote, "val").key == pictures(local, "val").key
    assert len(bucket.seen) - before <= 2  # the manifest alone
    # another set at the same URL: nothing of the old one is used
    for path in (tmp_path / "photos").glob("*.png"):
        Image.open(path).rotate(180).save(path)
    prepare_photos(tmp_path / "photos", tmp_path / "data", options, overwrite=True)
    Mirror(data, url).push()
    same(first(make_loader(remote, "train"), 3), first(make_loader(local, "train"), 3))
