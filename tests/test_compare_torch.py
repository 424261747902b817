"""scripts/compare_torch.py: the PyTorch module against the goldens, and the command itself."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: pip install 'zmar-jax[torch]'",
)


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def one_thread():
    """PyTorch's threads wait for each other, for minutes where others keep the cores busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def module_of(preset: str) -> Any:
    import dataclasses

    import torch
    from torch_encoder import Sizes
    from torch_model import ZmarSNFlow

    from zmar_jax.config import PRESETS

    with torch.device("meta"):  # shapes alone
        return ZmarSNFlow(Sizes.of(dataclasses.asdict(PRESETS[preset])))


@needs_torch
@pytest.mark.parametrize(("preset", "name"), [("tiny", "tiny"), ("zmar_snflow", "full")])
def test_the_module_has_exactly_the_published_tensors(preset, name):
    found = {key: tuple(t.shape) for key, t in module_of(preset).state_dict().items()}
    assert found == {key: shape for key, (shape, _) in golden.keys(name).items()}


@needs_torch
def test_the_module_meets_the_goldens(one_thread):
    from torch_check import check

    findings = list(check(golden, "tiny", "cpu"))
    assert {f.case for f in findings} == {"tiny_gradients", *golden.CASES}
    assert [f for f in findings if not f.passed] == []
    assert any(f.quantity == "gradients" for f in findings)


@needs_torch
def test_a_wrong_weight_fails_the_check(one_thread, monkeypatch, capsys):
    import compare_torch

    right = golden.state_dict

    def wrong(preset, seed):
        state = right(preset, seed)
        state["flowUpsamplerNet.layers.3.affine.fAffine.4.logs"] += 0.01
        return state

    monkeypatch.setattr(golden, "state_dict", wrong)
    assert compare_torch.run_check("tiny", "cpu") == 1
    assert "FAILED" in capsys.readouterr().out


@needs_torch
def test_not_a_number_is_no_pass():
    from torch_check import Finding

    assert not Finding("case", "z", math.nan, 1.0).passed


@needs_torch
def test_float32_means_it_and_a_missing_gpu_is_named(monkeypatch):
    import torch
    from compare_workers import prepare

    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    for backend in backends:
        backend.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare("cuda") == torch.device("cuda")
    assert not any(backend.allow_tf32 for backend in backends)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no CUDA device"):
        prepare("cuda")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "compare_torch.py"), "--preset", "tiny", *options]
    return subprocess.run(command, capture_output=True, text=True)


@needs_torch
@pytest.mark.slow
def test_the_command_writes_a_table_and_json(tmp_path):
    file = tmp_path / "out.json"
    sizes = ["--size", "20x24", "--crop", "16", "--batch", "2", "--threads", "1"]
    done = run(*sizes, "--repeats", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert result["threads"] == 1
    assert result["skipped"] == []
    rows = {(row["task"], row["framework"]): row for row in result["rows"]}
    assert list(rows) == [(t, f) for t in ("restore", "train") for f in ("torch", "jax")]
    for (task, framework), row in rows.items():
        assert row["shape"] == ([2, 24, 24] if task == "restore" else [2, 16, 16])
        assert len(row["runs"]) == 2
        assert all(r["seconds"] > 0 and r["cpu_seconds"] > 0 for r in row["runs"])
        assert row["peak_memory"] > 50e6
        assert row["difference"] <= (0 if framework == "torch" else 1e-4)
        assert f"| {task} | 2 x " in done.stdout


@needs_torch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "400"], "expected HEIGHTxWIDTH"),
        (["--size", "8x64"], "at least 16x16"),
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--threads", "-1"], "--threads 0 or more"),
        (["--check", "--device", "cuda"], "sees no CUDA device"),
    ],
)
def test_bad_options_are_one_clear_line(options, message, monkeypatch, capsys):
    import compare_torch
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["compare_torch.py", *options])
    assert compare_torch.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    import compare_torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["compare_torch.py"])
    assert compare_torch.main() == 1
    assert "zmar-jax[torch]" in capsys.readouterr().err


# Turns, skipping and units, without processes.


class FakeWorker:
    calls: list[str]

    def __init__(self, setting):
        from compare_workers import WorkerError

        if setting.framework == "torch.compile":
            raise WorkerError("no C++ compiler")
        self.setting, self.first_call = setting, 1.0

    def run(self):
        from compare_workers import Run

        self.calls.append(self.setting.framework)
        return Run(6.0, 8.0) if self.setting.framework == "torch" else Run(2.0, 4.0)

    def output(self):
        return np.array([4.0, 8.0]) * (1 if self.setting.framework == "torch" else 1.5)

    def peak(self):
        return 1

    def stop(self):
        self.calls.append(f"stop {self.setting.framework}")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    import compare_torch

    FakeWorker.calls = []
    monkeypatch.setattr(compare_torch, "Worker", FakeWorker)
    return FakeWorker.calls


def measured(task: str, frameworks: tuple[str, ...], skipped: list[str]) -> list[Any]:
    import compare_torch

    settings: Any = [SimpleNamespace(framework=f, task=task, policy="float32") for f in frameworks]
    return list(compare_torch.measure(settings, (1, 16, 16), 2, skipped))


@pytest.mark.parametrize(("task", "difference"), [("restore", 4.0), ("train", 0.5)])
def test_frameworks_take_turns_and_a_missing_compiler_is_skipped(task, difference, calls):
    skipped: list[str] = []
    torch_row, jax_row = measured(task, ("torch", "torch.compile", "jax"), skipped)
    assert calls == ["torch", "jax", "torch", "jax", "stop jax", "stop torch"]
    assert skipped == ["no C++ compiler"]
    assert (torch_row.ratio, jax_row.ratio, jax_row.cpu_ratio) == (1.0, 3.0, 2.0)
    assert (torch_row.difference, jax_row.difference) == (0.0, difference)


def test_results_that_are_not_finite_are_an_error(calls, monkeypatch):
    monkeypatch.setattr(FakeWorker, "output", lambda self: np.array([np.nan]))
    with pytest.raises(ValueError, match="not finite"):
        measured("train", ("torch", "jax"), [])
    assert calls[-2:] == ["stop jax", "stop torch"]


@pytest.mark.parametrize("load", [0.0, 9.0])
def test_a_busy_machine_is_named(load, capsys):
    import compare_torch

    about = {"busy": load > 0.5, "load_before": load, "cores": 2}
    compare_torch.report(about, [], [], None)
    assert ("busy machine" in capsys.readouterr().out) == (load > 0.5)
