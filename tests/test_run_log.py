"""What one sees of a run, and how it is stopped."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from zmar_jax.imaging.images import read_photo
from zmar_jax.train import log as module
from zmar_jax.train.log import RunLog, panel
from zmar_jax.train.stop import stop_signal
from zmar_jax.weights.checkpoint import CheckpointError


def console(terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=300, soft_wrap=True, highlight=False
    )


def text(log: RunLog) -> str:
    assert isinstance(log.console.file, io.StringIO)
    return log.console.file.getvalue()


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> list[Any]:
    """TensorBoard's files: length, its checksum, an event, its checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))  # pyright: ignore
            data = data[16 + length :]
    return found


def scalars(workdir: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(workdir)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


# Records.


def test_a_log_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, 400, 8, console=console()) as log:
        with log.timed("data"):
            time.sleep(0.04)
        with log.timed("validation"):
            time.sleep(0.5)
        time.sleep(0.06)
        log.advance(2)
        log.scalars(2, {"loss": np.float32(-1.5), "bits_per_dim": 2.25})
    (record,) = records(tmp_path)
    assert {k: record[k] for k in ("step", "loss", "bits_per_dim")} == {
        "step": 2,
        "loss": -1.5,
        "bits_per_dim": 2.25,
    }
    assert 0.02 <= record["data_seconds"] < 0.2
    assert 0.03 <= record["compute_seconds"] < 0.2  # not the validation's half second
    seconds = record["data_seconds"] + record["compute_seconds"]
    assert record["images_per_second"] == pytest.approx(8 / seconds)
    assert record["memory_bytes"] > 2**20
    (line,) = text(log).splitlines()
    assert line.startswith("step 2/400  loss -1.5  bits_per_dim 2.25  ")
    for part in ("images/s", "data 2", "compute ", "memory ", " GiB", "left 0:00:"):
        assert part in line
    found = scalars(tmp_path)
    assert (2, "train/loss", -1.5) in found
    assert {tag for _, tag, _ in found} == {
        "train/loss",
        "train/bits_per_dim",
        *(f"cost/{name}" for name in list(record)[3:]),
    }


def test_times_are_since_the_last_log_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, 9, 1, start=1, console=console()) as log:
        with log.timed("data"):
            time.sleep(0.2)
        log.scalars(2, {})
        log.scalars(4, {})
    assert records(tmp_path)[0]["data_seconds"] >= 0.2
    assert records(tmp_path)[1]["data_seconds"] == 0
    assert records(tmp_path)[1]["compute_seconds"] < 0.1


def test_no_number_is_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, 9, 1, console=console()) as log:
        log.scalars(1, {"loss": float("nan"), "norm": float("-inf")})
    (record,) = records(tmp_path)
    assert record["loss"] is None
    assert record["norm"] is None
    assert "loss nan  norm -inf" in text(log)


def test_a_validation(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 24, 3), np.uint8)
    with RunLog(tmp_path, 9, 1, console=console()) as log:
        log.validation(7, {"psnr": np.float64(21.5), "ssim": 0.5}, panel(*images))
    assert records(tmp_path) == [{"step": 7, "val_psnr": 21.5, "val_ssim": 0.5}]
    assert text(log) == "step 7  validation  psnr 21.5  ssim 0.5\n"
    assert (7, "validation/psnr", 21.5) in scalars(tmp_path)
    picture = read_photo(tmp_path / "panels" / "000007.png").rgb
    np.testing.assert_array_equal(picture, panel(*images))
    (shown,) = (v.image for e in events(tmp_path) for v in e.summary.value if v.HasField("image"))
    assert (shown.height, shown.width) == picture.shape[:2]


def test_panels_of_several_sizes_and_types() -> None:
    small, large = np.zeros((2, 3, 3)), np.full((4, 5, 3), 2.0)
    small[0, 0] = [np.nan, np.inf, 0.5]
    picture = panel([small, large], [small, np.full((4, 5, 3), 7, np.uint8)], [small, large])
    gap = 4
    assert picture.dtype == np.uint8
    assert picture.shape == (2 + gap + 4, 3 * 5 + 2 * gap, 3)
    assert picture[0, 0].tolist() == [0, 255, 128]
    assert picture[1, 2].tolist() == [0, 0, 0]
    assert (picture[2:6] == 255).all()
    assert (picture[:2, 3 * 3 + 2 * gap :] == 255).all()
    assert (picture[6:, 5 + gap : 10 + gap] == 7).all()


# Going on.


def test_a_resumed_run_drops_what_it_will_see_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, 9, 1, console=console()) as log:
        for step in (1, 2, 3, 4):
            log.scalars(step, {"loss": step})
            log.validation(step, {"psnr": step})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with RunLog(tmp_path, 9, 1, start=2, console=console()) as log:
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:4])
        log.scalars(3, {"loss": 30})
    assert [(r["step"], r.get("loss")) for r in records(tmp_path)] == [
        (1, 1.0),
        (1, None),
        (2, 2.0),
        (2, None),
        (3, 30.0),
    ]
    restarts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert restarts == [1, 3]  # TensorBoard forgets what it has of these steps and later


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}', "\0\0\n", "[1]\n", "{}\n"])
def test_a_torn_line_goes(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + torn)
    with RunLog(tmp_path, 9, 1, start=5, console=console()) as log:
        log.validation(6, {"psnr": 1})
    assert records(tmp_path) == [{"step": 1}, {"step": 6, "val_psnr": 1.0}]


# Who writes, and to what.


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "primary", lambda: False)
    with RunLog(tmp_path / "run", 9, 1, console=console(True)) as log:
        log.advance(1)
        log.scalars(1, {"loss": 1})
        log.validation(1, {"psnr": 1}, panel([np.zeros((8, 8, 3))]))
        log.message("hello")
    assert not (tmp_path / "run").exists()
    assert text(log) == ""


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    with RunLog(tmp_path, 40, 1, start=10, console=console(True)) as log:
        log.advance(20)
        log.scalars(20, {"loss": 1})
    assert "training" in text(log)
    assert "20/40" in text(log)
    assert "step 20/40  loss 1  " in text(log)


@pytest.mark.parametrize("file", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk(tmp_path: Path, file: str) -> None:
    message = rf"{file}.*: cannot be written \(No space left"
    with RunLog(tmp_path, 9, 1, console=console()) as log:
        path = tmp_path / file if file == "metrics.jsonl" else log._events
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
        with pytest.raises(CheckpointError, match=message):
            log.scalars(1, {"loss": 1})
        with pytest.raises(CheckpointError, match=message):
            log.validation(1, {"psnr": 1})


def test_a_workdir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: cannot be written"):
        RunLog(tmp_path / "file", 9, 1, console=console())


# Stopping.

LOOP = """
import itertools, time
from zmar_jax.train.stop import stop_signal

with stop_signal() as stop:
    print("running", flush=True)
    for step in itertools.count(1):
        time.sleep(0.01)
        if stop(step):
            break
print("saved", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM])
def test_a_signal_ends_the_loop_and_not_the_process(signum: signal.Signals) -> None:
    command = [sys.executable, "-c", LOOP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signum)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 0


def test_the_second_interrupt_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signal() as stop:
        assert not stop(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop(2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_sigterm_may_come_again() -> None:
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(1)
