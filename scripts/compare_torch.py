"""Compares zmar_jax with PyTorch on the machine at hand: speed, memory, and the numbers.

$ python scripts/compare_torch.py --task restore --size 400x600
$ python scripts/compare_torch.py --task train --crop 160 --policy both --compile --json out.json
$ python scripts/compare_torch.py --check

The PyTorch module (torch_model.py) computes what the release computes in the release's own way;
`--check` holds it to the golden files. It needs `pip install 'zmar-jax[torch]'` and a checkout.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from compare_workers import Run, Setting, Worker, WorkerError, prepare
from tyro.conf import arg

TESTS = Path(__file__).resolve().parents[1] / "tests"


@dataclasses.dataclass(frozen=True)
class Row:
    """A framework at a task. `first_call` is the seconds to load, compile and run once.

    `peak_memory` in bytes: the process's on a CPU, compiling included, else the GPU's.
    `difference` is from eager PyTorch in the same policy: the largest of the restored pixels,
    of 1, or of the losses of all steps, relative. `ratio` is PyTorch's seconds over these,
    `cpu_ratio` the same of the seconds of all cores together.
    """

    task: str
    policy: str
    framework: str
    shape: tuple[int, int, int]
    runs: tuple[Run, ...]
    first_call: float
    peak_memory: int
    difference: float
    ratio: float
    cpu_ratio: float


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
    compile: bool = False,
    check: bool = False,
    json_file: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Time PyTorch and zmar_jax in turns, each in a process of its own.

    Args:
      task: Restore (encoder and reversed flow, heat 0) or train step (nll, gradient, Adam).
      size: Height x width of the image to restore, pixels; rounded up to multiples of 8.
      crop: Side of the crops to train on, pixels; rounded up likewise.
      batch: Images at a time.
      preset: The model's sizes.
      policy: Float32, or mixed precision: autocast in PyTorch, the policy in zmar_jax.
      device: What to run on.
      repeats: Runs of each framework, of which the fastest counts.
      threads: Cores that each framework may use; 0 for all. On a busy machine use 1: PyTorch's
        threads wait for each other at every operation, and a core taken away holds up all.
      compile: Also time torch.compile.
      check: Hold the PyTorch module to the golden files instead; exit code 1 if it fails.
      json_file: Also write everything as JSON.
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
    load = os.getloadavg()[0]
    shapes = {
        "restore": (batch, *parse_size(size)),
        "train": (batch, *parse_size(f"{crop}x{crop}")),
    }
    tasks = ("restore", "train") if task == "both" else (task,)
    policies = ("float32", "bfloat16") if policy == "both" else (policy,)
    frameworks = ("torch", "torch.compile", "jax") if compile else ("torch", "jax")
    rows: list[Row] = []
    skipped: list[str] = []
    for name in tasks:
        with tempfile.TemporaryDirectory() as folder:
            config = write_inputs(Path(folder), preset, shapes[name])
            for p in policies:
                settings = [
                    Setting(f, name, p, device, threads, config, Path(folder)) for f in frameworks
                ]
                rows += measure(settings, shapes[name], repeats, skipped)
    report(machine(device, threads, load), rows, skipped, json_file)
    return 0


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 16):
        raise ValueError(f"expected HEIGHTxWIDTH of at least 16x16, as 400x600; got {text}")
    return int(height) + -int(height) % 8, int(width) + -int(width) % 8


def write_inputs(folder: Path, preset: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Weights of the golden files and a random batch for all workers; returns the model's sizes."""
    from safetensors.numpy import save_file

    from zmar_jax.config import PRESETS

    weights = {k: np.ascontiguousarray(a) for k, a in load_golden().state_dict(preset, 0).items()}
    save_file(weights, folder / "weights.safetensors")
    rng = np.random.default_rng(0)
    gt, noise = rng.random((2, *shape, 3), np.float32)
    low = np.round(60 * gt).astype(np.uint8)
    np.savez(folder / "inputs.npz", gt=gt, low=low, noise=noise - np.float32(0.5))
    return dataclasses.asdict(PRESETS[preset])


def load_golden() -> Any:
    """tests/golden.py: the golden files and the weights they were made with."""
    sys.path.append(str(TESTS))
    return importlib.import_module("golden")


def measure(
    settings: list[Setting], shape: tuple[int, int, int], repeats: int, skipped: list[str]
) -> Iterator[Row]:
    """Starts the workers one after the other, then runs them in turns."""
    with contextlib.ExitStack() as stack:
        workers = []
        for setting in settings:
            say(f"{setting.task}, {setting.policy}, {setting.framework}: starting")
            try:
                workers.append(Worker(setting))
            except WorkerError as e:
                if setting.framework != "torch.compile":
                    raise
                skipped.append(str(e))
                continue
            stack.callback(workers[-1].stop)
        turns = [[worker.run() for worker in workers] for _ in range(repeats)]
        runs = [tuple(of_one) for of_one in zip(*turns, strict=True)]
        reference = workers[0].output()
        for worker, mine in zip(workers, runs, strict=True):
            setting, found = worker.setting, worker.output()
            if not np.isfinite(found).all():
                raise ValueError(f"{setting.framework}, {setting.task}: the results are not finite")
            say(f"{setting.task}, {setting.policy}, {setting.framework}: {fastest(mine):.3g} s")
            unit = np.abs(reference) if setting.task == "train" else 1.0
            yield Row(
                task=setting.task,
                policy=setting.policy,
                framework=setting.framework,
                shape=shape,
                runs=mine,
                first_call=worker.first_call,
                peak_memory=worker.peak(),
                difference=float(np.max(np.abs(found - reference) / unit)),
                ratio=fastest(runs[0]) / fastest(mine),
                cpu_ratio=least_cpu(runs[0]) / least_cpu(mine),
            )


def say(what: str) -> None:
    """Progress, apart from the table."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def fastest(runs: tuple[Run, ...]) -> float:
    return min(run.seconds for run in runs)


def least_cpu(runs: tuple[Run, ...]) -> float:
    return min(run.cpu_seconds for run in runs)


def machine(device: str, threads: int, load: float) -> dict[str, Any]:
    """`load` is the machine's before anything ran: what others make of it."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "jax", "zmar-jax")}
    cores = os.cpu_count() or 1
    return {
        "device": device,
        "machine": platform.machine(),
        "cores": cores,
        "threads": threads or cores,
        "load_before": round(load, 2),
        "busy": load > 0.5,
        **versions,
    }


def report(
    about: dict[str, Any], rows: list[Row], skipped: list[str], json_file: Path | None
) -> None:
    print(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}\n")
    if about["busy"]:
        print(
            f"**Taken on a busy machine** (load {about['load_before']} on {about['cores']} cores "
            "before the start): no measure of either framework's speed. With more than one thread "
            "the clock is unfair to PyTorch, whose threads wait for each other.\n"
        )
    columns = "task | batch x height x width | policy | framework | seconds | torch / this | "
    columns += "CPU seconds | torch / this | first call s | peak memory GiB | difference"
    print(f"| {columns} |\n|{'---|' * 11}")
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        print(
            f"| {row.task} | {shape} | {row.policy} | {row.framework} "
            f"| {fastest(row.runs):.3g} | {row.ratio:.2f} "
            f"| {least_cpu(row.runs):.3g} | {row.cpu_ratio:.2f} | {row.first_call:.1f} "
            f"| {row.peak_memory / 2**30:.2f} | {row.difference:.1e} |"
        )
    for reason in skipped:
        print(f"\nskipped: {reason}", file=sys.stderr)
    if json_file:
        content = {**about, "rows": [dataclasses.asdict(row) for row in rows], "skipped": skipped}
        partial = json_file.with_name(json_file.name + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(json_file)


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
