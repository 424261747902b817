"""The command line: arguments, tables and progress bars; the work is done elsewhere."""

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from tyro.conf import Positional, arg

app = tyro.extras.SubcommandApp()
# names of files may look like markup
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class UsageError(ValueError):
    """Arguments that contradict each other."""


@app.command
def convert(
    source: Positional[Path],
    target: Positional[Path],
    /,
    to: Literal["orbax", "safetensors", "pth"] | None = None,
    overwrite: bool = False,
) -> None:
    """Convert weights between the PyTorch release and JAX, in both directions.

    Nothing in a file is ever run, so files from strangers are safe to convert.

    $ zmar-jax convert LOLv2_G.pth weights

    $ zmar-jax convert weights for_pytorch.safetensors

    $ zmar-jax convert weights for_pytorch.pth   (needs pip install 'zmar-jax[torch]')

    Args:
      source: A .pth or .safetensors file of the release's tensors, or an Orbax directory.
      target: A .safetensors or .pth file; any other name becomes an Orbax directory.
      to: Format of the target, where its name does not tell.
      overwrite: Replace what is at the target.
    """
    from zmar_jax.weights import load_weights, save_weights

    weights = load_weights(source)
    written = save_weights(target, weights, to, overwrite)
    table = _table(f"{source} -> {target}")
    table.add_row("format", f"{weights.format} -> {written}")
    table.add_row("tensors read", str(weights.tensors))
    table.add_row("used", str(weights.used))
    table.add_row("unused", str(weights.tensors - weights.used))
    table.add_row("dtype", ", ".join(weights.dtypes))
    table.add_row("checksum of params", weights.checksum)
    out.print(table)


@app.command
def info(weights: Positional[Path], /) -> None:
    """Show what a weights file holds: format, sizes, parameters, arithmetic.

    $ zmar-jax info weights

    Args:
      weights: A .pth or .safetensors file, or an Orbax directory.
    """
    from zmar_jax import cost
    from zmar_jax.config import Config, dump_config
    from zmar_jax.weights import load_weights, parameter_counts

    loaded = load_weights(weights)
    table = _table(str(weights))
    table.add_row("format", loaded.format)
    table.add_row("tensors", f"{loaded.tensors}, {loaded.used} used")
    table.add_row("dtype", ", ".join(loaded.dtypes))
    table.add_row("config", dump_config(Config(loaded.config)).strip() or "as published")
    for part, live, published in parameter_counts(loaded.config):
        table.add_row(f"parameters, {part}", f"{live:,} live, {published:,} published")
    height, width = 400, 600
    encoder, flow = cost.restore_multiply_adds(loaded.config, height, width)
    for part, count in (("encoder", encoder), ("flow", flow), ("both", encoder + flow)):
        table.add_row(f"multiply-adds per pixel, {part}", f"{count / (height * width):,.0f}")
    table.add_row("checksum of params", loaded.checksum)
    out.print(table)


@app.command
def restore(
    inputs: Positional[tuple[Path, ...]],
    /,
    checkpoint: Annotated[Path, arg(aliases=["-c"])],
    out_dir: Annotated[Path, arg(name="out", aliases=["-o"])] = Path("restored"),
    heat: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    std: bool = False,
) -> int:
    """Restore photographs: files, or folders with all that is in them.

    Each becomes a PNG of the same size and depth, at the same place below the output folder.
    PNG, JPEG, WebP, TIFF and BMP are read; transparency is kept. Pictures of an earlier run in the
    output folder are replaced, inputs never.

    $ zmar-jax restore dark.jpg --checkpoint weights

    $ zmar-jax restore photos/ -c weights -o restored --heat 0.5 --samples 8 --std

    Args:
      inputs: Photographs, or folders to search.
      checkpoint: Weights: .pth, .safetensors or an Orbax directory.
      out_dir: Folder to write to.
      heat: Standard deviation of the latent: 0 gives the most likely picture.
      samples: How many restorations to average, at heat above 0.
      seed: Seed of the latent.
      std: Write the standard deviation over the samples, too, as NAME.std.png.
    """
    from zmar_jax import compilation
    from zmar_jax.images import find_photos, output_paths
    from zmar_jax.restore import Options, load_restorer, restore_files, std_path

    if not inputs:
        raise UsageError("name at least one photograph or folder")
    if not 0 <= heat < math.inf:
        raise UsageError(f"--heat must be 0 or more, got {heat}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be 0 or more and below 2**32, got {seed}")
    if samples < 1:
        raise UsageError(f"--samples must be 1 or more, got {samples}")
    if samples > 1 and heat == 0:
        raise UsageError("--samples above 1 needs --heat above 0, else all samples are the same")
    if std and samples < 2:
        raise UsageError("--std needs --samples of 2 or more")
    found = find_photos(inputs)
    paths = output_paths(found, out_dir)
    if std:  # the deviations must not meet anything, either
        output_paths([*found, *((source, std_path(name)) for source, name in found)], out_dir)
    _make_folder(out_dir)
    compilation.enable_cache()
    restorer = load_restorer(checkpoint)
    with _progress(len(paths)) as step:
        failed = restore_files(restorer, paths, Options(heat, samples, seed, std), step)
    out.print(f"{len(paths) - len(failed)} of {len(paths)} restored into {out_dir}")
    return 1 if failed else 0


@app.command
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


def main(args: Sequence[str] | None = None) -> int:
    """Runs `zmar-jax`; returns the exit code."""
    try:
        code = app.cli(
            prog="zmar-jax",
            description="Low-light restoration with ZMAR-SNFlow in JAX.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except _user_errors() as e:
        err.print(f"error: {e}", style="red")
        return 1
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    return code or 0


def _user_errors() -> tuple[type[Exception], ...]:
    from zmar_jax.checkpoint import CheckpointError
    from zmar_jax.config import ConfigError
    from zmar_jax.images import ImageError
    from zmar_jax.torch_port import WeightsError

    return UsageError, CheckpointError, ConfigError, ImageError, WeightsError


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Path, Path, Exception | None], None]]:
    """A progress bar; what it yields is called after each file, with its error or None."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("restoring", total=total)

        def step(source: Path, target: Path, error: Exception | None) -> None:
            if error:
                bar.console.print(f"failed: {_reason(source, error)}", style="red")
            bar.advance(task)

        yield step


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made ({e.strerror}); choose another --out") from e


def _reason(source: Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.startswith(str(source)) else f"{source}: {text}"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < 16:
        raise UsageError(f"--size must be HEIGHTxWIDTH of at least 16x16, as 400x600; got {text}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
