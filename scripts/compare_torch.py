"""Compares zmar_jax with PyTorch on the machine at hand: speed, memory, and the numbers.

$ python scripts/compare_torch.py --task restore --size 400x600
$ python scripts/compare_torch.py --task train --crop 160 --policy both --compile --json out.json
$ python scripts/compare_torch.py --device cuda --policy both --batch 16 --json out.json
$ python scripts/compare_torch.py --check

The PyTorch module (torch_model.py) computes what the release computes in the release's own way;
`--check` holds it to the golden files in tests/. All else needs `pip install 'zmar-jax[torch]'` and
this folder alone.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from compare_jobs import Run, Setting, prepare
from compare_report import Problems, Row, fastest, least_cpu, machine, report, write_json
from compare_workers import Worker, WorkerError
from tyro.conf import arg

TESTS = Path(__file__).resolve().parents[1] / "tests"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a worker has told."""

    worker: Worker
    runs: tuple[Run, ...]
    peak: int
    output: np.ndarray


def compare(
    task: Literal["restore", "train", "both"] = "both",
    size: str = "400x600",
    crop: int = 160,
    batch: int = 1,
    preset: Literal["zmar_snflow", "tiny"] = "zmar_snflow",
    policy: Literal["float32", "bfloat16", "both"] = "float32",
    device: Literal["cpu", "cuda"] = "cpu",
    repeats: int = 3,
    threads: int = 0,
    remat: Literal["none", "blocks", "reversible"] = "blocks",
    frameworks: tuple[Literal["torch", "torch.compile", "jax"], ...] = ("torch", "jax"),
    compile: bool = False,
    check: bool = False,
    json_file: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Time PyTorch and zmar_jax, each in a process of its own: in turns on a CPU.

    What fails is named and left out; the exit code is 1 unless that is torch.compile's start.

    Args:
      task: Restore (encoder and reversed flow, heat 0) or train step (nll, gradient, Adam).
      size: Height x width of the image to restore, one at a time; rounded up to multiples of 8.
      crop: Side of the crops to train on, pixels; rounded up likewise.
      batch: Crops in a train step.
      preset: The model's sizes.
      policy: Float32, or mixed precision: autocast in PyTorch, the policy in zmar_jax.
      device: What to run on.
      repeats: Runs of each framework, of which the fastest counts.
      threads: Cores that each framework may use; 0 for all. On a busy machine use 1: PyTorch's
        threads wait for each other at every operation, and a core taken away holds up all.
      remat: What zmar_jax's train step computes again to save memory. PyTorch keeps everything,
        as zmar_jax does with none, which takes about ten times the memory of blocks.
      frameworks: What to time; torch is eager PyTorch, with which the others are compared.
      compile: Also time torch.compile, in its default mode.
      check: Hold the PyTorch module to the golden files instead; exit code 1 if it fails.
      json_file: Also write everything as JSON, anew after each task and policy.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch is not installed: pip install 'zmar-jax[torch]'")
    if check:
        return run_check(preset, device)
    if min(batch, repeats) < 1 or threads < 0:
        raise ValueError(
            "--batch and --repeats must be 1 or more, --threads 0 or more; "
            f"got {batch}, {repeats} and {threads}"
        )
    about = machine(device, threads, remat)
    shapes = {
        "restore": (1, *parse_size(size)),
        "train": (batch, *parse_size(f"{crop}x{crop}")),
    }
    tasks = ("restore", "train") if task == "both" else (task,)
    policies = ("float32", "bfloat16") if policy == "both" else (policy,)
    wanted = {*frameworks, *(["torch.compile"] if compile else [])}
    chosen = [name for name in ("torch", "torch.compile", "jax") if name in wanted]
    rows: list[Row] = []
    problems = Problems()
    for name in tasks:
        # a compiler's helpers may still write there
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            config = write_inputs(Path(folder), preset, shapes[name])
            for p in policies:
                settings = [
                    Setting(f, name, p, device, threads, remat, config, Path(folder))
                    for f in chosen
                ]
                rows += measure(settings, shapes[name], repeats, problems)
                about["device"] = ", ".join(dict.fromkeys(row.device for row in rows)) or device
                if json_file:
                    write_json(json_file, about, rows, problems)
    report(about, rows, problems)
    return 1 if problems.failed else 0


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 16):
        raise ValueError(f"expected HEIGHTxWIDTH of at least 16x16, as 400x600; got {text}")
    return int(height) + -int(height) % 8, int(width) + -int(width) % 8


def write_inputs(folder: Path, preset: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Random weights and a random batch for all workers; returns the model's sizes."""
    from safetensors.numpy import save_file

    from zmar_jax.benchmark.weights import random_state_dict
    from zmar_jax.config import PRESETS

    weights = random_state_dict(PRESETS[preset], 0)
    weights = {k: np.ascontiguousarray(a) for k, a in weights.items()}
    save_file(weights, folder / "weights.safetensors")
    rng = np.random.default_rng(0)
    gt, noise = rng.random((2, *shape, 3), np.float32)
    low = np.round(60 * gt).astype(np.uint8)
    np.savez(folder / "inputs.npz", gt=gt, low=low, noise=noise - np.float32(0.5))
    return dataclasses.asdict(PRESETS[preset])


def load_golden() -> Any:
    """tests/golden.py: the golden files and the weights they were made with."""
    if not (TESTS / "golden.py").exists():
        raise ValueError(f"--check needs the golden files in {TESTS}: run it in a clone")
    sys.path.append(str(TESTS))
    return importlib.import_module("golden")


def measure(
    settings: list[Setting], shape: tuple[int, int, int], repeats: int, problems: Problems
) -> list[Row]:
    """Rows of those that work.

    Turns share out what others make of a CPU. On a GPU each runs alone, as it may need all of the
    memory, and PyTorch keeps what it has freed.
    """
    alone = settings[0].device != "cpu"
    groups = [[setting] for setting in settings] if alone else [settings]
    found = [one for group in groups for one in take_turns(group, repeats, problems)]
    eager = next((one for one in found if one.worker.setting.framework == "torch"), None)
    return [to_row(one, eager, shape) for one in found]


def take_turns(settings: list[Setting], repeats: int, problems: Problems) -> list[Measured]:
    """Starts workers one after the other, then runs them in turns; one that fails drops out."""
    found: list[Measured] = []
    with contextlib.ExitStack() as stack:
        runs: dict[Worker, list[Run]] = {}
        for setting in settings:
            say(f"{setting.name}: starting")
            compiling = setting.framework == "torch.compile"
            with noted(problems.skipped if compiling else problems.failed):
                worker = Worker(setting)
                stack.callback(worker.stop)
                runs[worker] = []
        for turn in range(repeats):
            for worker, mine in runs.items():
                if len(mine) == turn:
                    with noted(problems.failed):
                        mine.append(worker.run())
        for worker, mine in runs.items():
            if len(mine) == repeats:
                with noted(problems.failed):
                    found.append(read(worker, tuple(mine)))
    return found


@contextlib.contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except WorkerError as e:
        say(str(e))
        problems.append(str(e))


def read(worker: Worker, runs: tuple[Run, ...]) -> Measured:
    name = worker.setting.name
    found = Measured(worker, runs, worker.peak(), worker.output())
    if not np.isfinite(found.output).all():
        raise WorkerError(f"{name}: the results are not finite")
    say(f"{name}: {fastest(runs):.3g} s")
    return found


def to_row(found: Measured, eager: Measured | None, shape: tuple[int, int, int]) -> Row:
    setting = found.worker.setting
    row = Row(
        task=setting.task,
        policy=setting.policy,
        framework=setting.framework,
        device=found.worker.device,
        shape=shape,
        runs=found.runs,
        first_call=found.worker.first_call,
        peak_memory=found.peak,
        difference=None,
        ratio=None,
        cpu_ratio=None,
    )
    if eager is None:
        return row
    unit = np.abs(eager.output) if setting.task == "train" else 1.0
    return dataclasses.replace(
        row,
        difference=float(np.max(np.abs(found.output - eager.output) / unit)),
        ratio=fastest(eager.runs) / fastest(found.runs),
        cpu_ratio=least_cpu(eager.runs) / least_cpu(found.runs),
    )


def say(what: str) -> None:
    """Progress, apart from the table."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def run_check(preset: str, device: str) -> int:
    from torch_check import check

    prepare(device)
    print("| golden file | quantity | error | allowed | |\n|---|---|---|---|---|")
    passed = True
    for f in check(load_golden(), preset, device):
        passed &= f.passed
        verdict = "ok" if f.passed else "FAILED"
        print(f"| {f.case} | {f.quantity} | {f.error:.1e} | {f.allowed:.0e} | {verdict} |")
    return 0 if passed else 1


def main() -> int:
    try:
        return tyro.cli(compare, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
