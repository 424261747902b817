"""`benchmark restore`, `benchmark train` and `benchmark data`."""

import dataclasses
import json
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, err, out, size_of, table_of
from zmar_jax.files.places import Place

benchmark: tyro.extras.SubcommandApp = tyro.extras.SubcommandApp()
Json = Annotated[bool, arg(name="json")]


@benchmark.command
def restore(
    size: str = "400x600",
    checkpoint: Place | None = None,
    preset: Literal["zmar_snflow", "tiny"] = "zmar_snflow",
    repeats: int = 3,
    json_output: Json = False,
) -> None:
    """Time restoring one picture: seconds to run and compile, memory, arithmetic.

    $ zmar-jax benchmark restore --size 400x600

    Args:
      size: Height x width, pixels.
      checkpoint: Weights whose model to time; without it, random ones of the preset.
      preset: The model's sizes, where no checkpoint is given.
      repeats: Runs, of which the fastest counts.
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.benchmark.restore import benchmark_restore, random_restorer
    from zmar_jax.config import PRESETS
    from zmar_jax.restore.restorer import load_restorer

    height, width = size_of(size)
    if repeats < 1:
        raise UsageError("--repeats must be 1 or more")
    restorer = load_restorer(checkpoint) if checkpoint else random_restorer(PRESETS[preset])
    result = benchmark_restore(restorer, height, width, repeats)
    if json_output:
        _print_json("restore", result)
        return
    table = Table(title=f"restore {result.size[0]}x{result.size[1]}, {result.device}")
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


@benchmark.command
def train(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    config: Place | None = None,
    repeats: int = 3,
    json_output: Json = False,
) -> None:
    """Time the training step on all devices: seconds to run and compile, memory, arithmetic.

    $ zmar-jax benchmark train data.batch_size=1

    $ zmar-jax benchmark train data.batch_size=16 model.policy=bfloat16 train.remat=reversible

    Args:
      settings: Changes to the configuration, section.key=value.
      config: YAML file of a run, or its name; without it, the published model and recipe.
      repeats: Steps, of which the fastest counts.
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.benchmark.train import benchmark_train
    from zmar_jax.config import Config, load_config, override

    if repeats < 1:
        raise UsageError("--repeats must be 1 or more")
    result = benchmark_train(
        override(load_config(config) if config else Config(), settings), repeats
    )
    if json_output:
        _print_json("train", result)
        return
    table = table_of(f"train, batch {result.batch_size}, crop {result.crop}, {result.device}")
    table.add_row("policy", result.policy)
    table.add_row("remat", result.remat)
    table.add_row("seconds a step", f"{result.seconds:.2f}")
    table.add_row("images per second", f"{result.images_per_second:.2f}")
    table.add_row("compile seconds", f"{result.compile_seconds:.1f}")
    table.add_row("GFLOP/s", f"{2e-9 * result.multiply_adds / result.seconds:.0f}")
    table.add_row("temporaries", f"{result.temporaries / 2**30:.2f} GiB")
    table.add_row("peak memory", f"{result.peak_memory / 2**30:.2f} GiB")
    out.print(table)


@benchmark.command
def data(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    config: Place | None = None,
    seconds: float = 10.0,
    json_output: Json = False,
) -> None:
    """Time loading training batches: crops per second, and where the time of a crop goes.

    $ zmar-jax benchmark data

    $ zmar-jax benchmark data data.name=lol_v1 data.data_dir=data data.workers=4

    $ zmar-jax benchmark data data.folder=data/photos data.cache_gib=0

    Args:
      settings: Changes to the configuration, section.key=value.
      config: YAML file of a run, or its name; without it, the built-in photographs.
      seconds: How long to load.
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.benchmark.data import CHIPS, benchmark_data
    from zmar_jax.config import Config, load_config, override

    if not 0 < seconds < 1e6:
        raise UsageError(f"--seconds must be above 0, got {seconds}")
    run = override(load_config(config) if config else Config(), settings)
    result = benchmark_data(run.data, seconds, run.model.brightness, err.print)
    if json_output:
        _print_json("data", result)
        return
    table = table_of(f"data {run.data.name}, crops of {result.crop}, {result.workers} workers")
    table.add_row("pictures", f"{result.pictures}")
    table.add_row("crops per second and host", f"{result.crops_per_second:.0f}")
    table.add_row("crops per second per worker", f"{result.per_worker:.0f}")
    for name, share in result.shares.items():
        table.add_row(f"share of {name}", f"{share:.0%}")
    table.add_row(
        f"a TPU host of {CHIPS} chips needs", f"{result.needed:.0f}; margin {result.margin:.1f}"
    )
    when = "once and not per crop" if result.decoded_once else "for each crop"
    table.add_row(f"decoding, {when}", f"{result.decode_ms:.1f} ms a picture")
    if result.decoded_once:
        table.add_row("cache on disk", f"{result.cache_bytes / 2**20:.0f} MiB")
    out.print(table)


def _print_json(task: str, result: Any) -> None:
    out.print(json.dumps({"task": task, **dataclasses.asdict(result)}))
