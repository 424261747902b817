"""What a run tells of itself: how it computes, how it spends its time, and to whom."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from training import config

from zmar_jax.benchmark import utilization
from zmar_jax.config import Config, ConfigError, override, to_dict
from zmar_jax.runtime.sharding import make_mesh
from zmar_jax.train.about import about, commit
from zmar_jax.train.goodput import CAUSES, Goodput
from zmar_jax.train.log import RunLog
from zmar_jax.train.wandb import Wandb


def test_a_run_says_how_it_computes(tmp_path: Path) -> None:
    found = about(config(), make_mesh(2), tmp_path)
    with RunLog(tmp_path, 9, 1, console=Console(quiet=True), about=found):
        pass
    assert json.loads((tmp_path / "run.json").read_text()) == found
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == {"kind": "cpu", "count": 4}
    assert found["mesh"] == {"data": 2, "fsdp": 2}
    assert (found["processes"], len(found["hosts"])) == (1, 1)
    assert found["config"] == to_dict(config())
    assert found["workdir"] == str(tmp_path)


def test_the_commit_is_that_of_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "zmar_jax" / "train" / "about.py"
    monkeypatch.setattr("zmar_jax.train.about.__file__", str(module))
    assert commit() is None
    run = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*run, "init", "-q"], check=True)
    (tmp_path / "a").write_text("a")
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-qm", "a"], check=True)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert commit() == head.stdout.strip()
    (tmp_path / "a").write_text("b")
    assert commit() == f"{head.stdout.strip()}-dirty"


def test_time_is_trained_or_lost_over_all_starts() -> None:
    first = Goodput({}, begun=1000.0)
    spent = {"compiling": 20.0, "data": 5.0, "saving": 5.0}
    record = first.record(spent, training=60.0, now=1100.0)
    assert record == {
        "time": 1100.0,
        "run_seconds": 100.0,
        "goodput": 0.6,
        "lost_data": 0.05,
        "lost_compiling": 0.2,
        "lost_validation": 0.0,
        "lost_saving": 0.05,
        "lost_restart": pytest.approx(0.1),
    }
    # killed; what it did after that record is done again
    second = Goodput(record, begun=1250.0)
    record = second.record({"data": 15.0}, training=60.0, now=1400.0)
    assert record["run_seconds"] == 400
    assert record["goodput"] == pytest.approx(120 / 400)
    assert record["lost_data"] == pytest.approx(20 / 400)
    assert record["lost_restart"] == pytest.approx((10 + 225) / 400)
    shares = [record["goodput"], *(record[f"lost_{cause}"] for cause in CAUSES)]
    assert sum(shares) == pytest.approx(1)


def test_a_log_goes_on_counting_where_its_records_end(tmp_path: Path) -> None:
    old = {"step": 4, "time": 1000.0, "run_seconds": 100.0, "goodput": 0.5}
    later = old | {"step": 6, "goodput": 0.9}
    text = "".join(json.dumps(record) + "\n" for record in (old, {"step": 4, "val_psnr": 1}, later))
    (tmp_path / "metrics.jsonl").write_text(text)
    with RunLog(tmp_path, 9, 1, start=4, console=Console(quiet=True)) as log:
        log.scalars(5, {})
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["run_seconds"] == pytest.approx(record["time"] - 900)
    assert 0 < record["goodput"] < 0.01  # 50 s of decades
    assert "mfu" not in record


def test_tensorboard_is_told_in_parts_that_it_reads_in_turn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zmar_jax.train.log._PART", 2000)
    with RunLog(tmp_path, 9, 1, console=Console(quiet=True)) as log:
        for step in range(1, 20):
            log.scalars(step, {"loss": 1.0})
    parts = sorted((tmp_path / "tensorboard").iterdir())
    assert len(parts) > 3
    assert all(part.stat().st_size < 4000 for part in parts)
    assert all(b"brain.Event:2" in part.read_bytes()[:60] for part in parts)


def test_utilization_is_known_of_chips_in_the_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(utilization, "model_flops", lambda config: 1e9)
    assert utilization.utilization(Config(), jax.devices()) is None
    cores = [
        SimpleNamespace(device_kind="TPU v4", process_index=0, coords=(chip, 0, 0))
        for chip in (0, 0, 1, 1)
    ]
    assert utilization.peak_flops(cores) == 2 * 275e12
    lite = [SimpleNamespace(device_kind="TPU v5 lite", process_index=0, coords=(0, 0, 0))]
    share = utilization.utilization(config(), lite)
    assert share
    assert share(2.0) == pytest.approx(2e9 / 197e12)
    with RunLog(tmp_path, 9, 8, console=Console(quiet=True), utilization=share) as log:
        log.scalars(1, {})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record["mfu"] == pytest.approx(share(record["images_per_second"]))


@pytest.mark.slow
def test_model_flops_are_three_times_those_of_the_likelihood_and_grow_with_the_crop() -> None:
    small = override(config(), ["data.crop=32"])
    larger = override(small, ["data.crop=64"])
    ratio = utilization.model_flops(larger) / utilization.model_flops(small)
    assert ratio == pytest.approx(4, rel=0.05)


def test_loggers_that_are_not_asked_for_are_told_nothing(tmp_path: Path) -> None:
    quiet = {"config": to_dict(override(config(), ["train.loggers=[]"]))}
    with RunLog(tmp_path, 9, 1, console=Console(quiet=True), about=quiet) as log:
        log.scalars(1, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").exists()
    assert not list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(ConfigError, match=r"train\.loggers"):
        override(config(), ["train.loggers=[board]"])


def test_wandb_that_is_not_installed_is_said_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'zmar-jax\[wandb\]'"):
        Wandb(tmp_path, {})


OFFLINE = """
import sys
from pathlib import Path
from rich.console import Console
from zmar_jax.train.log import RunLog
about = {"workdir": "gs://bucket/myrun", "config": {"train": {"loggers": ["wandb"]}}}
with RunLog(Path(sys.argv[1]), 9, 1, console=Console(quiet=True), about=about) as log:
    log.scalars(1, {"loss": 0.123456789})
    log.validation(1, {"psnr": 31.4159265})
"""


@pytest.mark.slow
def test_wandb_is_told_the_same_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    env = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path)], env=env, check=True, timeout=110)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    for part in (b"train/loss", b"0.123456789", b"validation/psnr", b"31.4159265", b"myrun"):
        assert part in content
