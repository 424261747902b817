"""What compare_torch.py has measured: rows, as a table and as JSON, and the machine they are of."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from compare_jobs import Run


@dataclasses.dataclass(frozen=True)
class Row:
    """A framework at a task. `first_call` is the seconds to load, compile and run once.

    `peak_memory` in bytes: on a CPU the process's, compiling included; on a GPU what the arrays
    of all runs took at once, PyTorch's without its first run, and JAX's with the compiler's trials,
    which it cannot forget. `difference` is from eager PyTorch in the same policy: the largest of
    the restored pixels, of 1, or of the losses of all steps, relative. `ratio` is PyTorch's seconds
    over these, `cpu_ratio` the same of the seconds of all cores together. All three are None where
    eager PyTorch failed.
    """

    task: str
    policy: str
    framework: str
    device: str
    shape: tuple[int, int, int]
    runs: tuple[Run, ...]
    first_call: float
    peak_memory: int
    difference: float | None
    ratio: float | None
    cpu_ratio: float | None


@dataclasses.dataclass(frozen=True)
class Problems:
    """In the workers' words: torch.compile may be unable to start, all else has `failed`."""

    skipped: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)


def fastest(runs: tuple[Run, ...]) -> float:
    return min(run.seconds for run in runs)


def least_cpu(runs: tuple[Run, ...]) -> float:
    return min(run.cpu_seconds for run in runs)


def machine(device: str, threads: int, remat: str) -> dict[str, Any]:
    """To be asked before anything runs: the load is what others make of the machine."""
    import zmar_jax

    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return {
        "device": device,
        "machine": platform.machine(),
        "cores": cores,
        "threads": threads or cores,
        "load_before": round(load, 2),
        "busy": load > 0.5,
        "torch": importlib.metadata.version("torch"),
        "jax": importlib.metadata.version("jax"),
        "zmar-jax": zmar_jax.__version__,
        "remat": remat,
    }


def write_json(file: Path, about: dict[str, Any], rows: list[Row], problems: Problems) -> None:
    # here, as the processes that run PyTorch import this module, too, and no JAX
    from zmar_jax.files.replacing import write_whole

    content = {**about, "rows": [dataclasses.asdict(row) for row in rows]}
    content |= dataclasses.asdict(problems)
    write_whole(file, json.dumps(content, indent=2) + "\n")


def report(about: dict[str, Any], rows: list[Row], problems: Problems) -> None:
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
            f"| {fastest(row.runs):.3g} | {shown(row.ratio, '.2f')} "
            f"| {least_cpu(row.runs):.3g} | {shown(row.cpu_ratio, '.2f')} | {row.first_call:.1f} "
            f"| {row.peak_memory / 2**30:.2f} | {shown(row.difference, '.1e')} |"
        )
    for kind, reasons in dataclasses.asdict(problems).items():
        for reason in reasons:
            print(f"\n{kind}: {reason}", file=sys.stderr)


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
