"""Checkpoints in an emulated bucket: whole or not there, kept and dropped as on a disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")
from emulators import Fault, Gate, emulator

from zmar_jax.config import Config, override
from zmar_jax.files.places import Bucket, PlaceError, _filesystem
from zmar_jax.train.bucket_checkpoints import BucketCheckpoints
from zmar_jax.train.lock import only_training
from zmar_jax.weights.checkpoint import CheckpointError

CONFIG = override(Config(), ["train.keep=2"])


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def gate(request, tmp_path_factory) -> Iterator[tuple[str, Gate]]:
    log = tmp_path_factory.mktemp(request.param) / "log"
    with emulator(request.param, log) as (gate, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _filesystem(request.param).clear_instance_cache()
        yield request.param, gate
        _filesystem(request.param).clear_instance_cache()


@pytest.fixture
def bucket(gate, request) -> Iterator[tuple[str, Gate]]:
    yield f"{gate[0]}://bucket/{request.node.originalname}", gate[1]
    gate[1].faults.clear()


def state(step: int) -> dict[str, Any]:
    return {"a": step + jnp.arange(1000.0), "step": jnp.int32(step)}


def run(
    url: str,
    saved: dict[int, float | None],
    config: Config = CONFIG,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[str]:
    """Saves these steps, with their PSNR, after whatever is there; returns what was warned of."""
    said: list[str] = []
    with (
        only_training(url, said.append) as (folder, work),
        BucketCheckpoints(work, config, said.append) as checkpoints,  # type: ignore[arg-type]
    ):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f"{list(saved)}\n")
        meanwhile()
        for step, psnr in saved.items():
            checkpoints.save(step, state(step), {"at": step}, psnr and {"psnr": psnr})
        checkpoints.wait()
    return said


def restored(url: str) -> tuple[int, Any]:
    said: list[str] = []
    with (
        only_training(url, said.append) as (_, work),
        BucketCheckpoints(work, CONFIG, said.append) as checkpoints,  # type: ignore[arg-type]
    ):
        found = checkpoints.restore_latest(state(0))
    assert found
    np.testing.assert_array_equal(found[1]["a"], state(found[0])["a"])
    assert found[2] == {"at": found[0]}
    return found[0], said


def steps(url: str) -> set[int]:
    names = Bucket(url).names("checkpoints")
    return {int(name.split("/")[1]) for name in names if name.endswith("/digests.json")}


def test_the_newest_and_the_best_are_kept_over_several_starts(bucket) -> None:
    url, gate = bucket
    assert run(url, {1: 30.0, 2: None}) == []
    assert run(url, {3: 20.0, 4: None}) == []
    assert steps(url) == {1, 3, 4}
    before = len(gate.seen)
    assert restored(url) == (4, [])
    read = [line for line in gate.seen[before:] if line.startswith("GET") and "state" in line]
    assert not [line for line in read if "checkpoints/3/" in line or "checkpoints%2F3%2F" in line]
    assert Bucket(url).read("metrics.jsonl") == b"[1, 2]\n[3, 4]\n"


def test_what_is_put_half_is_no_checkpoint(bucket) -> None:
    url, gate = bucket
    run(url, {1: None})
    gate.faults = [Fault("checkpoints/2/state/manifest", status=403)]
    with pytest.raises(CheckpointError, match=f"{url}/checkpoints/2.*ask for the permission"):
        run(url, {2: None})
    gate.faults.clear()
    assert Bucket(url).names("checkpoints/2")
    assert steps(url) == {1}
    assert restored(url) == (1, [])
    assert not Bucket(url).names("checkpoints/2")


@pytest.mark.slow
def test_a_save_that_fails_is_made_up_for_by_the_next(bucket) -> None:
    url, gate = bucket
    gate.faults = [Fault("checkpoints/1/state", times=1, status=403)]
    (warning,) = run(url, {1: None, 2: None})
    assert "checkpoints/1: cannot be written" in warning
    assert restored(url) == (2, [])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(bucket) -> None:
    url, _ = bucket
    run(url, {1: None, 2: None})
    name = next(n for n in Bucket(url).names("checkpoints/2/state") if "/d/" in n)
    Bucket(url).write(name, b"other")
    step, (warning,) = restored(url)
    assert step == 1
    assert "checkpoints/2: damaged" in warning
    assert steps(url) == {1}
    assert "damaged/2/digests.json" in Bucket(url).names("damaged")


def test_a_run_that_lost_its_lock_writes_no_more(bucket) -> None:
    url, _ = bucket
    lost: dict[int, float | None] = {1: None}
    with pytest.raises(CheckpointError, match="another training has begun to write this run"):
        run(url, lost, meanwhile=lambda: Bucket(url).write(".lock/000007", b"{}"))
    assert steps(url) == set()


@pytest.mark.slow
def test_another_configuration_is_refused_by_the_name_of_the_bucket(bucket) -> None:
    url, _ = bucket
    run(url, {1: None})
    with pytest.raises(CheckpointError, match=f"^{url}: this run was begun with another"):
        run(url, {2: None}, override(CONFIG, ["train.seed=5"]))


def test_a_bucket_that_cannot_be_written_is_told_at_once(bucket) -> None:
    url, gate = bucket
    gate.faults = [Fault(".lock", status=403)]
    with pytest.raises(PlaceError, match=f"{url}/.lock.*ask for the permission"):
        run(url, {})


@pytest.mark.slow
def test_nothing_stays_on_this_machine(bucket, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(bucket[0], {1: None})
    assert not list(tmp_path.iterdir())
