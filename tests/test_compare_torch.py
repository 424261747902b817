"""scripts/compare_torch.py: the PyTorch module against the goldens, and the command itself."""

import contextlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import needs
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


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


@needs.torch
@pytest.mark.parametrize(("preset", "name"), [("tiny", "tiny"), ("zmar_snflow", "full")])
def test_the_module_has_exactly_the_published_tensors(preset, name):
    found = {key: tuple(t.shape) for key, t in module_of(preset).state_dict().items()}
    assert found == {key: shape for key, (shape, _) in golden.keys(name).items()}


@needs.torch
def test_the_module_meets_the_goldens(one_thread):
    from torch_check import check

    findings = list(check(golden, "tiny", "cpu"))
    assert {f.case for f in findings} == {"tiny_gradients", *golden.CASES}
    assert [f for f in findings if not f.passed] == []
    assert any(f.quantity == "gradients" for f in findings)


@needs.torch
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


@needs.torch
def test_not_a_number_is_no_pass():
    from torch_check import Finding

    assert not Finding("case", "z", math.nan, 1.0).passed


@needs.torch
def test_float32_means_it_and_a_missing_gpu_is_named(monkeypatch):
    import torch
    from compare_jobs import prepare

    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    for backend in backends:
        backend.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare("cuda") == torch.device("cuda")
    assert not any(backend.allow_tf32 for backend in backends)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no CUDA device"):
        prepare("cuda")


@needs.torch
@pytest.mark.parametrize("task", ["restore", "train"])
def test_on_a_gpu_the_first_run_is_waited_for_and_its_peak_forgotten(
    task, tmp_path, monkeypatch, one_thread
):
    import compare_jobs
    import compare_torch
    import torch
    from compare_jobs import Setting

    class Device(str):
        """Named as a CPU, where PyTorch looks, with the type that the worker looks at."""

        type = "cuda"

    done = []
    answers = {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 3,
        "get_device_name": "a card",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda n=name, a=answer: done.append(n) or a)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(compare_jobs, "prepare", lambda device: Device("cpu"))
    config = compare_torch.write_inputs(tmp_path, "tiny", (1, 16, 16))
    setting = Setting("torch", task, "float32", "cuda", 0, "blocks", config, tmp_path)
    job = compare_jobs.torch_job(setting)
    job.run()
    assert (job.device, job.peak()) == ("a card", 3)
    assert np.isfinite(job.output()).all()
    first = ["synchronize", "reset_peak_memory_stats", "get_device_name"]
    assert done == [*first, "synchronize", "max_memory_allocated"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "compare_torch.py"), "--preset", "tiny", *options]
    return subprocess.run(command, capture_output=True, text=True)


@needs.torch
@pytest.mark.slow
def test_the_command_writes_a_table_and_json(tmp_path):
    file = tmp_path / "out.json"
    sizes = ["--size", "20x24", "--crop", "16", "--batch", "2", "--threads", "1"]
    sizes += ["--remat", "reversible"]
    done = run(*sizes, "--repeats", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert result["threads"] == 1
    assert (result["device"], result["remat"]) == ("cpu", "reversible")
    assert (result["skipped"], result["failed"]) == ([], [])
    rows = {(row["task"], row["framework"]): row for row in result["rows"]}
    assert list(rows) == [(t, f) for t in ("restore", "train") for f in ("torch", "jax")]
    for (task, framework), row in rows.items():
        assert row["shape"] == ([1, 24, 24] if task == "restore" else [2, 16, 16])
        assert len(row["runs"]) == 2
        assert all(r["seconds"] > 0 and r["cpu_seconds"] > 0 for r in row["runs"])
        assert row["peak_memory"] > 50e6
        assert row["difference"] <= (0 if framework == "torch" else 1e-4)
        assert f"| {task} | {row['shape'][0]} x " in done.stdout


@needs.torch
@pytest.mark.slow
def test_without_a_gpu_each_worker_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("--device", "cuda", "--task", "restore", "--size", "16x16")
    assert done.returncode == 1
    assert "failed: torch (restore, float32): ValueError: this PyTorch sees no" in done.stderr
    assert "failed: jax (restore, float32): ValueError: this JAX sees no cuda" in done.stderr
    assert "Traceback" not in done.stderr
    assert "| task |" in done.stdout


@needs.torch
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


# Turns, failures and units, without processes.


class FakeWorker:
    calls: list[str]
    fails: set[tuple[str, str]]
    """(framework, what): start, run, output, or nan for results that are not finite."""

    def __init__(self, setting):
        self.setting, self.first_call, self.device = setting, 1.0, "a card"
        self.fail("start")

    def fail(self, what):
        from compare_workers import WorkerError

        if (self.setting.framework, what) in self.fails:
            raise WorkerError(f"{self.setting.name}: no {what}")

    def run(self):
        from compare_jobs import Run

        self.calls.append(self.setting.framework)
        self.fail("run")
        return Run(6.0, 8.0) if self.setting.framework == "torch" else Run(2.0, 4.0)

    def output(self):
        self.fail("output")
        if (self.setting.framework, "nan") in self.fails:
            return np.array([np.nan])
        return np.array([4.0, 8.0]) * (1 if self.setting.framework == "torch" else 1.5)

    def peak(self):
        return 1

    def stop(self):
        self.calls.append(f"stop {self.setting.framework}")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    import compare_torch

    FakeWorker.calls, FakeWorker.fails = [], set()
    monkeypatch.setattr(compare_torch, "Worker", FakeWorker)
    return FakeWorker.calls


ALL = ("torch", "torch.compile", "jax")


def measured(task: str, frameworks: tuple[str, ...], device: str = "cpu") -> tuple[Any, Any]:
    import compare_torch
    from compare_jobs import Setting

    settings = [
        Setting(f, task, "float32", device, 0, "blocks", {}, Path("folder")) for f in frameworks
    ]
    problems = compare_torch.Problems()
    return compare_torch.measure(settings, (1, 16, 16), 2, problems), problems


@pytest.mark.parametrize(("task", "difference"), [("restore", 4.0), ("train", 0.5)])
def test_frameworks_take_turns_and_a_missing_compiler_is_skipped(task, difference, calls):
    FakeWorker.fails = {("torch.compile", "start")}
    (torch_row, jax_row), problems = measured(task, ALL)
    assert calls == ["torch", "jax", "torch", "jax", "stop jax", "stop torch"]
    assert problems.skipped == [f"torch.compile ({task}, float32): no start"]
    assert problems.failed == []
    assert (torch_row.ratio, jax_row.ratio, jax_row.cpu_ratio) == (1.0, 3.0, 2.0)
    assert (torch_row.difference, jax_row.difference) == (0.0, difference)


def test_on_a_gpu_each_has_the_memory_alone(calls):
    rows, _ = measured("train", ("torch", "jax"), "cuda")
    assert calls == ["torch", "torch", "stop torch", "jax", "jax", "stop jax"]
    assert [(row.device, row.ratio) for row in rows] == [("a card", 1.0), ("a card", 3.0)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("what", ["start", "run", "output", "nan"])
@pytest.mark.parametrize("who", ALL)
def test_a_failure_ends_its_own_row_alone(who, what, device, calls):
    FakeWorker.fails = {(who, what)}
    rows, problems = measured("train", ALL, device)
    assert [row.framework for row in rows] == [f for f in ALL if f != who]
    assert {row.ratio is None for row in rows} == {who == "torch"}
    (words,) = problems.failed + problems.skipped
    assert words.startswith(f"{who} (train, float32): ")
    assert bool(problems.skipped) == ((who, what) == ("torch.compile", "start"))
    # nobody is asked again after a failure
    assert calls.count(who) == {"start": 0, "run": 1}.get(what, 2)
    assert {call for call in calls if "stop" in call} >= {f"stop {row.framework}" for row in rows}


@pytest.mark.parametrize("failure", [None, "torch", "torch.compile"])
def test_what_there_is_is_reported(failure, calls, tmp_path, monkeypatch, capsys):
    import compare_torch

    FakeWorker.fails = {(failure, "start")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compare_torch, "write_inputs", lambda *args: {})
    about = {"busy": False, "device": "cuda"}
    monkeypatch.setattr(compare_torch, "machine", lambda *args: dict(about))
    file = tmp_path / "out.json"
    sizes: Any = {"batch": 16, "size": "400x600", "crop": 160, "policy": "both"}
    done = compare_torch.compare(**sizes, device="cuda", compile=True, json_file=file)
    assert done == (failure == "torch")
    result, printed = json.loads(file.read_text()), capsys.readouterr()
    assert result["device"] == "a card"
    assert "device a card" in printed.out
    assert [row["shape"] for row in result["rows"] if row["framework"] == "jax"] == (
        2 * [[1, 400, 600]] + 2 * [[16, 160, 160]]
    )
    jax_row = result["rows"][-1]
    if failure == "torch":
        assert len(result["failed"]) == 4
        assert "failed: torch (train, bfloat16): no start" in printed.err
        assert (jax_row["ratio"], jax_row["cpu_ratio"], jax_row["difference"]) == 3 * (None,)
        assert "| jax | 2 | - | 4 | - | 1.0 | 0.00 | - |" in printed.out
    else:
        assert jax_row["ratio"] == 3
        assert len(result["skipped"]) == (4 if failure else 0)


def test_a_process_that_is_gone_is_named():
    from compare_workers import Worker, WorkerError

    class Pipe:
        def send(self, command):
            raise BrokenPipeError

        def recv(self):
            raise EOFError

    worker: Any = Worker.__new__(Worker)
    worker.setting = SimpleNamespace(name="jax (train, float32)")
    worker._pipe, worker._process = Pipe(), SimpleNamespace(join=lambda: None, exitcode=-9)
    with pytest.raises(WorkerError, match=r"jax \(train, float32\): .* -9; out of memory\?"):
        worker.run()


@pytest.mark.parametrize("load", [0.0, 9.0])
def test_a_busy_machine_is_named(load, capsys):
    import compare_torch

    about = {"busy": load > 0.5, "load_before": load, "cores": 2}
    compare_torch.report(about, [], compare_torch.Problems())
    assert ("busy machine" in capsys.readouterr().out) == (load > 0.5)
