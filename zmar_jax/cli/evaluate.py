"""`evaluate`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from zmar_jax.cli.console import (
    UsageError,
    check_folder,
    check_open,
    check_sampling,
    err,
    link,
    memory_limit,
    out,
    progress,
    range_of,
    say_source,
    show,
    table_of,
    with_the_others,
)
from zmar_jax.files.places import Place, local

if TYPE_CHECKING:
    from zmar_jax.evaluate.evaluation import Evaluation
    from zmar_jax.evaluate.pairs import Pairs, Source
    from zmar_jax.evaluate.records import Records


def evaluate(
    *,
    data: str,
    checkpoint: Annotated[Place | None, arg(aliases=["-c"])] = None,
    out_dir: Annotated[Place, arg(name="out", aliases=["-o"])] = Path("evaluation"),
    protocol: Literal["zmar", "rf"] = "zmar",
    gt_mean: bool = False,
    gt: Path | None = None,
    clean: bool = False,
    no_reference: Annotated[bool, arg(name="no-reference")] = False,
    masks: str | None = None,
    samples: int = 1,
    heat: float = 0.0,
    views: Literal["auto", 1, 2, 4, 8] = "auto",
    seed: int = 0,
    data_dir: Annotated[Place, arg(name="data-dir")] = Path("data"),
    exposure: str | None = None,
    sdsd_frames: int | None = None,
    batch: int | None = None,
    memory: str | None = None,
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None,
    processes: int | None = None,
    process: int | None = None,
    overwrite: bool = False,
    open_: Annotated[bool, arg(name="open")] = False,
) -> None:
    """Measure how well weights restore: PSNR, SSIM, bits per dimension, and a report to look at.

    Writes metrics.json, per_image.csv, table.md, report.html and the restored pictures. Started
    again it goes on where it was; with other weights or options it is refused, unless you say
    --overwrite. Pictures of one size are batched, over all devices of a machine. Started on
    several machines, as `train` is, each restores its share.

    $ zmar-jax evaluate --data lol_v1 --checkpoint LOLv1_G.pth

    $ zmar-jax evaluate --data my_pairs/ -c runs/photos -o evaluation --protocol rf

    $ zmar-jax evaluate --data builtin -c runs/photos --samples 8 --heat 0.5

    $ zmar-jax evaluate --data night_photos/ --no-reference

    $ zmar-jax evaluate --data my_pairs/ -c gs://bucket/run -o gs://bucket/evaluation

    Args:
      data: A prepared benchmark, of which the test split is taken; a folder with subfolders low
        (or input, lq, dark) and gt (or high, normal, target, hq) of the same names, there or
        deeper; a folder of clean photographs, which are darkened as `zmar-jax mask --darken` does;
        or builtin, the ones that come with scikit-image.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir, also
        in a bucket; without it, the small model that comes with the package.
      out_dir: Folder to write to, or its URL in a bucket.
      protocol: How to score: zmar as the authors, rf as Retinexformer. Not interchangeable.
      gt_mean: Scale restored pictures to the ground truth's brightness first; for comparison with
        papers that do.
      gt: Folder of the ground truths, where --data is that of the dark pictures.
      clean: The folder holds clean photographs, whatever its subfolders are called.
      no_reference: The folder holds dark pictures without ground truths; they are scored by NIQE
        (lower is better) and by their mean brightness.
      masks: Lost pixels: procedural, none, or a folder of mask images. If not given, photographs
        lose some, and so do benchmarks that are scored by zmar; all else is taken as it is.
      samples: How many restorations to average, at heat above 0; gives an uncertainty map.
      heat: Standard deviation of the latent: 0 gives the most likely picture.
      views: Of how many mirrored and turned views of a picture to average the restorations: auto is
        4 for the models of this package at heat 0, else 1, as published.
      seed: Of masks, darkening, samples and the noise of the likelihood.
      data_dir: Where `zmar-jax prepare` wrote the benchmark, or the URL of a copy.
      exposure: Clean photographs get evenly less light instead of a night: a factor on linear
        light, LOW:HIGH, as 0.03:0.3.
      sdsd_frames: Frames to take of each SDSD scene: 30 as SNR-Aware does; all if not given.
      batch: Pictures that each device computes at once; about a megapixel of them if not given,
        and one on a CPU.
      memory: What a batch may take on each device, as 16GiB; by default what is free.
      coordinator: Address of the first process, where hosts do not find each other.
      processes: How many processes there are in all, with --coordinator.
      process: Which of them this is, from 0, with --coordinator.
      overwrite: Begin again, whatever the output folder holds.
      open_: Show the report in the browser at the end.
    """
    from zmar_jax.evaluate import evaluation, hosts, pairs, table
    from zmar_jax.evaluate.measures import Scoring
    from zmar_jax.evaluate.network import Network, Sampling
    from zmar_jax.imaging.views import choose_views
    from zmar_jax.runtime import compilation
    from zmar_jax.runtime.processes import agree, primary, together
    from zmar_jax.weights import load_weights

    check_sampling(heat, samples, seed)
    limit = memory_limit(memory)
    for option, number in (("sdsd-frames", sdsd_frames), ("batch", batch)):
        if number is not None and number < 1:
            raise UsageError(f"--{option} must be 1 or more, got {number}")
    if no_reference and (gt_mean or protocol != "zmar"):
        raise UsageError("--protocol and --gt-mean need ground truths; --no-reference has none")
    if (gt is not None) + clean + no_reference > 1:
        raise UsageError("--gt, --clean and --no-reference exclude each other")
    check_folder(out_dir)
    check_open(open_, out_dir)
    truths = None if gt is None else str(gt)
    given = pairs.Source(
        data, data_dir, sdsd_frames=sdsd_frames, seed=seed, reference=not no_reference, gt=truths,
        clean=clean,
    )  # fmt: skip
    scoring = Scoring(protocol, gt_mean)
    with with_the_others(coordinator, processes, process):
        source = together(lambda: _source(given, exposure, masks, protocol, out_dir))
        opened = together(lambda: pairs.open_pairs(source))
        for note in opened.notes:
            err.print(note)
        weights = together(lambda: load_weights(checkpoint))
        say_source(checkpoint, weights.source)
        chosen = choose_views(views, weights.config.brightness, heat)
        sampling = Sampling(heat, samples, chosen, seed)
        settings = evaluation.settings(opened, source, weights, sampling, scoring)
        agree({**settings, "pictures": opened.fingerprint})
        compilation.enable_cache()
        with hosts.opened(out_dir, settings, overwrite) as (target, records):
            likelihood = opened.kind != "dark"
            network = Network(weights, batch, memory_limit=limit, likelihood=likelihood)
            mine = evaluation.share(opened, network, *hosts.which())
            with progress(sum(map(len, mine)), "evaluating", target.put) as step:
                works = (opened, network, records, sampling, scoring, mine, step)
                together(lambda: evaluation.run(*works))
            hosts.gathered(target, records)
            written = (settings, opened, records)
            done = together(lambda: _written(*written) if primary() else None)
    if done is None:
        return
    result, path = done
    shown = table_of(f"{data} -> {out_dir}")
    for name, value, detail in table.facts(result):
        shown.add_row(name, f"{value}  {detail}")
    for note in opened.notes:
        shown.add_row("note", note)
    shown.add_row("report", link(path if isinstance(out_dir, Path) else f"{out_dir}/{path.name}"))
    out.print(shown)
    for name in evaluation.not_finite(result):
        err.print(f"warning: {name}: its restoration is not finite", style="yellow")
    for name in evaluation.without_niqe(result):
        err.print(f"warning: {name}: no NIQE, as hardly any of it has texture", style="yellow")
    if open_:
        show(path)


def _source(
    given: "Source", exposure: str | None, masks: str | None, protocol: str, out_dir: Place
) -> "Source":
    """What is evaluated, with what options and its kind say of darkness and lost pixels."""
    from zmar_jax.config import DarkenConfig, MaskConfig
    from zmar_jax.evaluate.pairs import kind_of

    kind = kind_of(given.data, given.reference, given.gt, given.clean)
    if exposure and kind != "photographs":
        raise UsageError(f"--exposure is of clean photographs; {given.data} has dark pictures")
    if given.sdsd_frames and not given.data.startswith("sdsd"):
        raise UsageError(f"--sdsd-frames is of the SDSD benchmarks; {given.data} is none")
    for folder in (given.data, *([given.gt] if given.gt else [])):
        _apart(local(folder), out_dir)
    lost = kind == "photographs" or (kind == "benchmark" and protocol == "zmar")
    return dataclasses.replace(
        given,
        masks=MaskConfig(source=masks or ("procedural" if lost else "none")),
        darken=DarkenConfig(exposure=range_of("--exposure", exposure), kind="gain")
        if exposure
        else DarkenConfig(),
    )


def _written(
    settings: dict[str, Any], opened: "Pairs", records: "Records"
) -> "tuple[Evaluation, Path]":
    """Numbers, table and report."""
    from zmar_jax.evaluate import evaluation, report, table

    result = evaluation.summarize(settings, evaluation.collect(opened, records))
    table.write_numbers(result, records.folder)
    with progress(len(opened.ids), "report") as step:
        return result, report.write_report(result, opened, records.folder, step)


def _apart(data: Path, out_dir: Place) -> None:
    """Results must not become inputs, nor replace them."""
    if isinstance(out_dir, str):
        return
    data, target = data.resolve(), out_dir.resolve()
    if data.is_dir() and (target.is_relative_to(data) or data.is_relative_to(target)):
        raise UsageError(
            f"{out_dir}: lies in the folder of pictures, or they in it; choose another"
        )
