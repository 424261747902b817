"""A prepared set in an emulated bucket is copied to this machine's cache, and read from there."""

from pathlib import Path

import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")
from benchmark_folders import make
from emulators import emulator

from zmar_jax.data import DataError
from zmar_jax.data.datasets import prepare
from zmar_jax.data.prepared import open_prepared
from zmar_jax.files.mirror import Mirror
from zmar_jax.files.places import _filesystem, kept


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
