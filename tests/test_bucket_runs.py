"""Runs in an emulated bucket: killed and gone on with, they are what undisturbed ones are."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")
from emulators import Fault, Gate, emulator, with_environment

from zmar_jax.cli import main
from zmar_jax.config import ConfigError, load_config
from zmar_jax.files.mirror import fetched
from zmar_jax.files.places import Bucket, _filesystem
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of `state_of`

SETTINGS = (
    *("model.dim=2", "model.blocks=[1,1,1]", "model.heads=[1,1,1]", "model.flow_steps=1"),
    *("model.refinement_blocks=1", "model.flow_hidden=4", "model.flow_additional_steps=1"),
    *("data.name=photos", "data.crop=16", "data.batch_size=4", "data.workers=0"),
    *("train.steps=12", "train.checkpoint_every=2", "train.validate_every=8", "train.log_every=1"),
    *("train.keep=2", "train.ema=0.9"),
)

QUICKLY = """
import sys
from zmar_jax.cli import main
from zmar_jax.runtime import compilation
compilation.LLVM_LEVEL = 0
sys.exit(main(sys.argv[1:]))
"""
"""The command, compiled with few passes: small sizes compile for longer than they run."""


@pytest.fixture(params=["gs", "s3"])
def bucket(request, tmp_path, monkeypatch) -> Iterator[tuple[str, Gate, dict[str, str]]]:
    with emulator(request.param, tmp_path / "emulator.log") as (gate, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        _filesystem(request.param).clear_instance_cache()
        yield f"{request.param}://bucket", gate, environment
        _filesystem(request.param).clear_instance_cache()


def start(workdir: str | Path, log: Path, *more: str) -> subprocess.Popen:
    command = ["train", "--config", "tiny", "--workdir", str(workdir), *SETTINGS, *more]
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-c", QUICKLY, *command],
            stderr=file,
            env=with_environment(
                {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "TMPDIR": str(log.parent)}
            ),
            cwd=log.parent,
        )


def state_of(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointHandler().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics_of(workdir: Path) -> list[dict]:
    """Without what depends on the time that something took."""
    timed = ("second", "memory", "time", "goodput", "lost_")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not any(word in k for word in timed)}
        for line in lines
    ]


def wait_for(step: int, url: str, process: subprocess.Popen) -> None:
    while f"checkpoints/{step}/digests.json" not in Bucket(url).names():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_goes_on_bit_for_bit(bucket, tmp_path: Path) -> None:
    """Killed by SIGKILL in start-up and in the middle, its bucket busy and refusing at times."""
    root, gate, _ = bucket
    peace, url, log = tmp_path / "peace", f"{root}/deep/run", tmp_path / "log"
    assert start(peace, log).wait() == 0, log.read_text()
    for step in (2, 6):
        process = start(url, log)
        gate.faults = [
            Fault("upload|PUT", times=2, status=503),
            Fault("metrics.jsonl", times=1, cut=True),
            Fault("checkpoints/4/digests", times=1, status=403),
        ]
        wait_for(step, url, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    gate.faults.clear()
    assert start(url, log).wait() == 0, log.read_text()
    with fetched(url, ValueError) as killed:
        assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == sorted(
            p.name for p in (peace / "checkpoints").iterdir()
        )
        expected, found = state_of(peace, 12), state_of(killed, 12)
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert metrics_of(killed) == metrics_of(peace)
        assert (killed / "config.yaml").read_text() == (peace / "config.yaml").read_text()
        assert {p.name for p in (killed / "panels").iterdir()} >= {"000001.png", "000012.png"}
        assert list((killed / "tensorboard").iterdir())
    assert load_weights(url).checksum == load_weights(peace).checksum
    assert not list(tmp_path.glob("gs*")) + list(tmp_path.glob("s3*"))
    assert start(url, log, "train.seed=1").wait() == 1
    assert f"{url}: this run was begun with another configuration" in log.read_text()
    assert "/zmar-jax-" not in log.read_text()


@pytest.mark.slow
def test_a_second_training_of_a_bucket_is_refused(bucket, tmp_path: Path) -> None:
    root, _, _ = bucket
    url, log, other = f"{root}/run", tmp_path / "log", tmp_path / "other"
    first = start(url, log, "train.steps=100000")
    wait_for(2, url, first)
    assert start(url, other).wait() == 1
    assert f"{url}: another training is writing this run" in other.read_text()
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0, log.read_text()
    assert "stopped at step" in log.read_text()
    assert [name for name in Bucket(url).names() if name.startswith(".lock")]


@pytest.mark.slow
def test_a_bucket_that_may_not_be_written_ends_a_run_in_one_line(bucket, tmp_path: Path) -> None:
    root, gate, _ = bucket
    url, log = f"{root}/run", tmp_path / "log"
    gate.faults = [Fault("(?s)^(POST|PUT).*checkpoints/", status=403)]
    assert start(url, log).wait() == 1
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"error: {url}/checkpoints/")
    assert "ask for the permission" in last
    assert "Traceback" not in log.read_text()
    assert not [n for n in Bucket(url).names() if n.endswith("digests.json")]


@pytest.mark.slow
def test_two_processes_train_in_a_bucket_and_one_goes_on(bucket, tmp_path: Path) -> None:
    """They share no folder: the first process gathers what both hold, and each reads for itself."""
    root, _, _ = bucket
    url, log = f"{root}/run", tmp_path / "log"
    for end in (4, 6):  # begun, and gone on with
        port = free_port()
        both = [
            start(
                url,
                tmp_path / f"log{i}",
                f"train.steps={end}",
                *("--accept-changes", "--coordinator", f"127.0.0.1:{port}"),
                *("--processes", "2", "--process", str(i)),
            )
            for i in range(2)
        ]
        codes = [process.wait(timeout=300) for process in both]
        assert codes == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    assert "resumed at step 4" in (tmp_path / "log0").read_text()
    more = ("train.steps=8", "--accept-changes")
    assert start(url, log, *more).wait() == 0, log.read_text()
    assert "resumed at step 6" in log.read_text()


@pytest.mark.slow
def test_commands_read_and_write_buckets(bucket, tmp_path: Path, capsys) -> None:
    """Configurations, weights, pictures and evaluations."""
    root, _, _ = bucket
    weights = load_weights()
    dark = tmp_path / "night" / "a.png"
    write_photo(dark, Photo(np.random.default_rng(0).integers(0, 60, (96, 192, 3), np.uint8)))
    Bucket(f"{root}/in").put(dark, "deep/a.png")
    assert main(["convert", "bundled", f"{root}/w.safetensors"]) == 0
    assert main(["convert", f"{root}/w.safetensors", f"{root}/orbax"]) == 0
    assert main(["convert", f"{root}/w.safetensors", f"{root}/orbax"]) == 1
    assert f"{root}/orbax: exists already" in capsys.readouterr().err
    assert main(["convert", f"{root}/w.safetensors", f"{root}/orbax", "--overwrite"]) == 0
    assert load_weights(f"{root}/orbax").checksum == weights.checksum
    assert main(["info", f"{root}/none"]) == 1
    assert f"{root}/none: expected weights, found nothing" in capsys.readouterr().err
    command = ["restore", f"{root}/in", "-c", f"{root}/orbax"]
    assert main([*command, "-o", f"{root}/restored"]) == 0
    assert main([*command, "-o", f"{root}/one.png"]) == 0
    assert set(Bucket(f"{root}/restored").names()) == {"deep/a.png"}
    assert Bucket(f"{root}/one.png").read() == Bucket(f"{root}/restored").read("deep/a.png")
    assert "/tmp/" not in (said := capsys.readouterr()).out + said.err
    evaluated = ["evaluate", "--data", str(dark.parent), "--no-reference", "-o", f"{root}/out"]
    assert main(evaluated) == 0
    names = set(Bucket(f"{root}/out").names())
    assert {"records.jsonl", "metrics.json", "report.html", "restored/a.png"} <= names
    before = Bucket(f"{root}/out").read("records.jsonl")
    assert main(evaluated) == 0  # nothing is computed again
    assert Bucket(f"{root}/out").read("records.jsonl") == before
    Bucket(f"{root}/c").write("a.yaml", b"model: {dim: 4}")
    assert load_config(f"{root}/c/a.yaml").model.dim == 4
    with pytest.raises(ConfigError, match=f"{root}/c/b.yaml: no such file"):
        load_config(f"{root}/c/b.yaml")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
