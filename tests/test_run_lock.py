"""One training in a workdir: a second is refused, and the lock goes with its process."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from training import MODEL, config

from zmar_jax.cli import main
from zmar_jax.evaluate.records import EvaluationError, only_evaluation
from zmar_jax.train import train
from zmar_jax.train.lock import only_training
from zmar_jax.weights.checkpoint import CheckpointError

HOLD = """
import sys, time
from pathlib import Path
from zmar_jax.train.lock import only_training
with only_training(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_training_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    workdir = tmp_path / "a" / "run"
    command = [sys.executable, "-c", HOLD, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=f"{workdir}: another training is writing"):
                train(config(), workdir)
            assert [p.name for p in workdir.iterdir()] == [".lock"]
        finally:
            other.send_signal(signal.SIGKILL)
    with only_training(workdir):
        pass


def test_a_second_evaluation_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "a" / "evaluation"
    with only_evaluation(out):
        with (
            pytest.raises(EvaluationError, match=f"{out}: another evaluation is writing there"),
            only_evaluation(out),
        ):
            pass
        assert [p.name for p in out.iterdir()] == [".lock"]
    with only_evaluation(out):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(EvaluationError, match="file: cannot be written"),
        only_evaluation(tmp_path / "file"),
    ):
        pass


def test_the_command_evaluates_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    nothing = SimpleNamespace(notes=(), fingerprint="", source="weights", config=MODEL)
    for name, found in (
        ("evaluate.pairs.open_pairs", nothing),
        ("weights.load_weights", nothing),
        ("evaluate.evaluation.settings", {}),
    ):
        monkeypatch.setattr(f"zmar_jax.{name}", lambda *_, found=found: found)
    with only_evaluation(tmp_path):
        assert main(["evaluate", "--data", "builtin", "--out", str(tmp_path)]) == 1
    assert "another evaluation is writing there" in capsys.readouterr().err


def test_an_error_gives_the_workdir_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_training(tmp_path):
        raise ZeroDivisionError
    with only_training(tmp_path):
        pass


def test_a_workdir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = "cannot be written: FileExistsError.*; mend that, or choose another --workdir"
    with pytest.raises(CheckpointError, match=message), only_training(tmp_path / "file"):
        pass
