"""`benchmark`."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, out


def benchmark(
    task: Positional[Literal["restore"]],
    /,
    size: str = "400x600",
    checkpoint: Path | None = None,
    preset: Literal["zmar_snflow", "tiny"] = "zmar_snflow",
    repeats: int = 3,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Time a task on this machine: seconds to run and compile, memory, arithmetic.

    $ zmar-jax benchmark restore --size 400x600

    Args:
      task: What to time.
      size: Height x width, pixels.
      checkpoint: Weights whose model to time; without it, random ones of the preset.
      preset: The model's sizes, where no checkpoint is given.
      repeats: Runs, of which the fastest counts.
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.benchmark import benchmark_restore
    from zmar_jax.config import PRESETS
    from zmar_jax.weights import load_weights

    height, width = _size(size)
    if repeats < 1:
        raise UsageError("--repeats must be 1 or more")
    weights = load_weights(checkpoint) if checkpoint else None
    config = weights.config if weights else PRESETS[preset]
    params = weights.params if weights else None
    result = benchmark_restore(config, height, width, repeats, params)
    if json_output:
        out.print(json.dumps({"task": task, **dataclasses.asdict(result)}))
        return
    table = Table(title=f"{task} {result.size[0]}x{result.size[1]}, {result.device}")
    for column in ("part", "seconds", "share", "compile s", "GFLOP/s", "temporaries MiB"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in result.parts:
        table.add_row(
            part.name,
            f"{part.seconds:.2f}",
            f"{part.seconds / result.seconds:.0%}",
            f"{part.compile_seconds:.1f}",
            f"{2e-9 * part.multiply_adds / part.seconds:.0f}",
            f"{part.temporaries / 2**20:.0f}",
        )
    compiling = sum(part.compile_seconds for part in result.parts)
    table.add_row("both", f"{result.seconds:.2f}", "100%", f"{compiling:.1f}", "", "")
    out.print(table)
    out.print(f"peak memory of the process: {result.peak_memory / 2**30:.2f} GiB")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < 16:
        raise UsageError(f"--size must be HEIGHTxWIDTH of at least 16x16, as 400x600; got {text}")
    return int(match[1]), int(match[2])
