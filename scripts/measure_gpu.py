"""Measures zmar_jax on a GPU, beside PyTorch: run it as scripts/measure_gpu.sh.

Each row of the table is a process of its own with a time limit. What fails, or finds no time any
more, is a row that says so. JSON and Markdown are written anew after each row, so that they are
there whatever ends the whole. The exit code is 1 where a row failed.
"""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from measure_report import markdown
from measure_rows import ROOT, Result, Row, Sizes, Unreadable, rows
from tyro.conf import Positional, arg

LEAST = 10.0
"""Seconds under which no row is begun."""
GRACE = 5.0
"""Seconds for a process to end by itself once it is told to."""


def measure(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path = Path("measured"),
    minutes: float = 8.8,
    device: str = "cuda",
    preset: str = "zmar_snflow",
    size: str = "400x600",
    crop: int = 160,
    batch: int = 16,
    repeats: int = 3,
    only: Annotated[str, arg(name="only")] = "",
) -> int:
    """Measures everything; prints the table and writes gpu.json and gpu.md.

    Args:
      settings: Changes to the configuration for zmar_jax's own rows, section.key=value.
      out: Folder to write to.
      minutes: After which no row runs any more.
      device: What to run on; cpu to try this command out.
      preset: The model's sizes in the rows beside PyTorch.
      size: Height x width of the picture to restore.
      crop: Side of the crops to train on, pixels.
      batch: Crops in a train step.
      repeats: Runs, of which the fastest counts.
      only: Rows whose name has this in it.
    """
    end = time.monotonic() + 60 * minutes
    sizes = Sizes(device, preset, size, crop, batch, repeats, settings)
    chosen = [row for row in rows(sizes) if only in row.name]
    if not chosen:
        raise ValueError(f"--only {only}: no such row; there are: {names(rows(sizes))}")
    out.mkdir(parents=True, exist_ok=True)
    about = machine(sizes)
    done: list[Result] = []
    for number, row in enumerate(chosen, 1):
        say(f"{number} of {len(chosen)}: {row.name}; {end - time.monotonic():.0f} s are left")
        done += run(row, device, end - time.monotonic())
        write(out, about, done)
    print((out / "gpu.md").read_text())
    failed = [result for result in done if "failed" in result]
    say(f"{len(done) - len(failed)} results, {len(failed)} failures, in {out}/gpu.json and gpu.md")
    return 1 if failed else 0


def names(found: list[Row]) -> str:
    return "; ".join(row.name for row in found)


def run(row: Row, device: str, left: float) -> list[Result]:
    """What the row found, or one result that says why it found nothing."""
    start = time.monotonic()
    try:
        if left < LEAST:
            raise Unreadable(f"no time was left; run again with --only '{row.name}'")
        found = _read(row, device, min(row.limit, left - GRACE))
    except (OSError, KeyError, ValueError) as e:
        problem = f"{type(e).__name__}: {e}" if isinstance(e, KeyError) else str(e)
        found = [{"what": row.name, "failed": problem}]
        say(f"{row.name}: {problem}")
    taken = time.monotonic() - start
    return [{"row": row.name, "row_seconds": round(taken, 1)} | result for result in found]


def _read(row: Row, device: str, limit: float) -> list[Result]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "result.json"
        command = [part.format(json=file) if part == "{json}" else part for part in row.command]
        # one GPU, as in all rows
        environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
        environment |= {"JAX_PLATFORMS": device, "TMPDIR": folder} | row.environment
        code, printed, errors = _finish(command, environment, limit)
        try:
            found = row.read(printed, file)
        except ValueError as e:
            said = errors.strip().splitlines()[-1:] or printed.strip().splitlines()[-1:]
            ended = f"exit code {code}" if code is not None else f"stopped after {limit:.0f} s"
            raise Unreadable(f"{ended}: {said[0] if said else e}") from e
    if code and not any("failed" in result for result in found):
        found.append({"what": row.name, "failed": _why(code, errors)})
    elif code is None:
        found.append({"what": row.name, "failed": f"stopped after {limit:.0f} s"})
    return found


def _why(code: int, errors: str) -> str:
    last = errors.strip().splitlines()[-1:]
    return f"exit code {code}" + (f": {last[0]}" if last else "")


def _finish(
    command: list[str], environment: dict[str, str], limit: float
) -> tuple[int | None, str, str]:
    """Exit code (None: its time was over), what it printed, and its errors.

    At the end of its time the process and all that it started are interrupted, then killed.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            limit = GRACE
        else:
            return (process.returncode if number == signal.SIGINT else None), printed, errors
    printed, errors = process.communicate()
    return None, printed, errors


def machine(sizes: Sizes) -> dict[str, Any]:
    """What it is measured on; of the GPU what its driver says."""
    about = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "cores": os.cpu_count() or 1}
    about |= {"python": platform.python_version(), **dataclasses.asdict(sizes)}
    fields = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as e:
        return about | {"nvidia-smi": f"none: {e}"}
    return about | {"nvidia-smi": (done.stdout or done.stderr).strip()}


def write(out: Path, about: dict[str, Any], done: list[Result]) -> None:
    """Both files, whole or as they were."""
    from zmar_jax.files.replacing import write_whole

    content = {"about": about, "results": done}
    write_whole(out / "gpu.json", json.dumps(content, indent=2) + "\n")
    write_whole(out / "gpu.md", markdown(about, done))


def say(what: str) -> None:
    """Progress, apart from the table."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> int:
    try:
        return tyro.cli(measure, description=__doc__)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
