"""`compile`."""

import dataclasses
import json
import time
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, err, out, table_of
from zmar_jax.files.places import Place

GIB = 2**30


def compile_(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    topology: str,
    batch: int | None = None,
    crop: int | None = None,
    policy: Literal["float32", "bf16", "bfloat16"] | None = None,
    config: Place | None = None,
    only: Literal["train", "inverse"] | None = None,
    effort: float | None = None,
    triton: bool = True,
    largest_batch: bool = False,
    breakdown: bool = False,
    cycles: bool = False,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> int | None:
    """Compile the training step and `inverse` for a TPU slice or GPUs that are not there.

    Needs the extra `tpu` or `cuda` (pip install '.[tpu]' brings the compiler, libtpu) and neither
    chip nor driver. Says what memory, arithmetic, memory traffic and collectives a chip would have,
    how fast it could be at best at the chip's published peaks, and which kernels a GPU would run.
    Everything is compiled, not measured. At the published sizes each program takes minutes.

    $ zmar-jax compile --topology v5e:2x4 --batch 64 --policy bf16

    $ zmar-jax compile --topology v5p:4x4x4 --batch 512 --only train train.remat=blocks

    $ zmar-jax compile --topology v5e:1x1 --batch 8 --only train --largest-batch --json

    $ zmar-jax compile --topology v5e:1x1 --policy bf16 --only train --effort 0 --breakdown

    $ zmar-jax compile --topology v5e:1x1 --only train --batch 1 --crop 40 --cycles

    $ zmar-jax compile --topology h100 --batch 16 --policy bf16 --no-triton

    Args:
      settings: Changes to the configuration, section.key=value.
      topology: Kind and arrangement of chips, as v5e:2x4 or h100:8; an unknown one lists all.
      batch: Images of a batch over all chips; 8 a chip if neither this nor --config is given.
      crop: Height and width of the images, pixels, a multiple of 8.
      policy: Of the encoder and the couplings' hidden layers.
      config: YAML file of a run, or its name; without it, the published model and recipe.
      only: One of the two programs.
      effort: XLA's effort at making the program fast, from -1 (for TPUs, as it compiles in minutes)
        to 0 (for GPUs, and as in training; several times longer for TPUs). Memory differs a little.
      triton: For GPUs, whether XLA may make Triton kernels where cuBLAS or a loop would do.
      largest_batch: Also find the largest batch that fits: some more compilations.
      breakdown: Also show where the time goes, by XLA's cost model: by kind of work, by module, by
        layer, and the heaviest instructions; forward, recomputed and backward.
      cycles: The same, and beside it the cycles of the machine code that libtpu schedules, which
        knows Pallas kernels, too; gathers, scatters and LU decompositions are left out. Takes
        seconds a kernel for small images, minutes and gigabytes for --batch 8 and --crop 160.
      json_output: Print JSON lines instead of tables.
    """
    import jax

    from zmar_jax.benchmark.breakdown import pieces
    from zmar_jax.benchmark.compile import TooLarge, compile_for
    from zmar_jax.benchmark.compile import largest_batch as search
    from zmar_jax.benchmark.schedule import ScheduleError, compile_scheduled
    from zmar_jax.benchmark.topology import parse_slice
    from zmar_jax.cli.breakdown import tables

    target = parse_slice(topology)
    if effort is None:
        effort = -1.0 if target.chip.platform == "tpu" else 0.0
    if not -1 <= effort <= 0:
        raise UsageError(f"--effort must be from -1 to 0, got {effort}")
    if (breakdown or cycles) and target.chip.platform != "tpu":
        raise UsageError("--breakdown and --cycles are for TPUs; a GPU's kernels are listed anyway")
    if batch is None and config is None:
        batch = 8 * target.chips
    run = _config(config, settings, batch, crop, policy)
    # nothing runs here, and a chip that is there would be taken from those who use it
    jax.config.update("jax_platforms", "cpu")
    failed = False
    for task in ("train", "inverse"):
        if only not in (None, task):
            continue
        what = f"{task} for {target.name}, batch {run.data.batch_size}, crop {run.data.crop}"
        with err.status(f"compiling {what}; began {time.strftime('%H:%M:%S')}"):
            try:
                if cycles:
                    result = compile_scheduled(task, run, target, effort, err.print)
                else:
                    result = compile_for(task, run, target, effort, triton)
            except TooLarge as e:
                err.print(f"{what}: does not fit: {e}", style="red")
                failed = True
                continue
            except ScheduleError as e:
                raise UsageError(str(e)) from e
            say = err.print
            most = search(task, run, target, result, say) if largest_batch else None
        if json_output:
            found = pieces(result.hlo) if breakdown or cycles else None
            out.print(json.dumps(_json(result, most, found, target.chip.clock)))
        else:
            out.print(_table(result, most))
            if breakdown or cycles:
                for table in tables(pieces(result.hlo), target.chip.clock, cycles):
                    out.print(table)
    return 1 if failed else None


def _json(result: Any, most: int | None, found: Any, clock: float) -> dict[str, Any]:
    from zmar_jax.benchmark.breakdown import rows

    shown = dataclasses.asdict(result)
    del shown["hlo"]
    if most is not None:
        shown["largest_batch"] = most
    if found is not None:
        shown["breakdown"] = rows(found, clock)
    return shown


def _config(
    path: Place | None,
    settings: tuple[str, ...],
    batch: int | None,
    crop: int | None,
    policy: str | None,
) -> Any:
    from zmar_jax.config import Config, load_config, override

    full = {"bf16": "bfloat16"}.get(policy or "", policy)
    options = {"data.batch_size": batch, "data.crop": crop, "model.policy": full}
    chosen = tuple(f"{key}={value}" for key, value in options.items() if value is not None)
    return override(load_config(path) if path else Config(), (*chosen, *settings))


def _table(result: Any, most: int | None) -> Any:
    table = table_of(
        f"{result.task}, {result.topology} ({result.chips} chips), batch {result.batch_size}, "
        f"crop {result.crop}, {result.policy}: {result.remark}"
    )
    table.add_row("HBM a device, used", f"{result.hbm / GIB:.2f} GiB")
    free = f"{result.hbm_free / GIB:.2f} GiB" if result.hbm_free >= 0 else "none: does not fit"
    table.add_row("HBM a device, free", free)
    table.add_row("of it temporaries", f"{result.temporaries / GIB:.2f} GiB")
    if most is not None:
        table.add_row("largest batch that fits", f"{most}")
    table.add_row("bfloat16 TFLOP", f"{result.flops / 1e12:.2f}")
    table.add_row("HBM traffic", f"{result.hbm_traffic / 1e9:.1f} GB")
    for collective in result.collectives:
        size = f"{collective.size / 1e6:.1f} MB"
        table.add_row(f"{collective.kind}, {collective.count} times", size)
    table.add_row("compute, at peak", _ms(result.compute_seconds))
    table.add_row("HBM traffic, at peak", _ms(result.memory_seconds))
    table.add_row("collectives, at peak", _ms(result.collective_seconds))
    table.add_row("at best, a step", _ms(result.seconds))
    table.add_row("at best, images per second", f"{result.images_per_second:.0f}")
    table.add_row("XLA's estimate of compute", _ms(result.estimated_seconds))
    if unknown := sum(kernels.unestimated for kernels in result.kernels):
        table.add_row("not in it", f"{unknown} kernels")
    for kernels in result.kernels:
        size = f"{kernels.count} times, {kernels.traffic / 1e9:.1f} GB"
        table.add_row(f"kernels: {kernels.kind}", f"{size}, {_ms(kernels.estimated)}")
    table.add_row("compile seconds", f"{result.compile_seconds:.0f}")
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
