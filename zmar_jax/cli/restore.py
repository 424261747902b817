"""`restore`."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from rich.text import Text
from tyro.conf import Positional, arg

from zmar_jax.cli.console import (
    UsageError,
    check_devices,
    check_folder,
    check_open,
    check_sampling,
    err,
    link,
    make_folder,
    memory_limit,
    out,
    progress,
    say_source,
    show,
    table_of,
)
from zmar_jax.files.mirror import fetched, published
from zmar_jax.files.places import Place, PlaceError, local

PANEL = "panel.png"
"""The sample before and after, and its ground truth, beside each other."""


def restore(
    inputs: Positional[tuple[Place, ...]] = (),
    /,
    checkpoint: Annotated[Place | None, arg(aliases=["-c"])] = None,
    out_place: Annotated[Place, arg(name="out", aliases=["-o"])] = Path("restored"),
    heat: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    std: bool = False,
    mask: str = "auto",
    brightness: float | Literal["auto"] = "auto",
    views: Literal["auto", 1, 2, 4, 8] = "auto",
    memory: str | None = None,
    devices: int = 1,
    stripes: Literal["auto", "none"] = "auto",
    gps: bool = False,
    open_: Annotated[bool, arg(name="open")] = False,
) -> int:
    """Restore photographs: files, or folders with all that is in them; without any, a sample.

    Each becomes a PNG of the same size and depth, at the same place below the output folder, with
    its date, camera, dpi and colour profile. One picture alone may become a file: -o result.png.
    PNG, JPEG, WebP, TIFF, BMP, GIF and AVIF are read; transparency is kept. Pictures of an earlier
    run in the output folder are replaced, and not restored again; inputs are never replaced.

    $ zmar-jax restore

    $ zmar-jax restore dark.jpg --checkpoint weights -o bright.png

    $ zmar-jax restore photos/ -c weights -o restored --heat 0.5 --samples 8 --std

    $ zmar-jax restore dark.jpg --brightness 1.3

    $ zmar-jax restore broken.png --mask broken_mask.png

    $ zmar-jax restore huge.png -c weights --memory 16GiB

    $ zmar-jax restore gs://bucket/photos -c gs://bucket/run -o gs://bucket/restored

    Args:
      inputs: Photographs, or folders to search, also in a bucket, from which they are copied first;
        without any, a sample is restored.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir, also
        in a bucket; without it, the small model that comes with the package.
      out_place: Folder to write to, or, for one picture, the file; or its URL in a bucket.
      heat: Standard deviation of the latent: 0 gives the most likely picture.
      samples: How many restorations to average, at heat above 0.
      seed: Seed of the latent.
      std: Write the standard deviation over the samples, too, as NAME.std.png.
      mask: Which pixels are lost and are to be filled in: auto finds them; none; an image that is
        white where they are; or a folder of such images, called like the pictures.
      brightness: Factor on the brightness that auto chooses: 1.3 is brighter, 0.8 darker.
      views: Of how many mirrored and turned views to average the restorations, each of which takes
        its time: auto is 4 for the models of this package at heat 0, else 1, as published.
      memory: What a picture may take on each device, as 16GiB; by default what is free.
      devices: How many devices share the rows of a picture.
      stripes: How a picture is worked on: auto takes stripes of it where they are faster or needed
        to fit; none takes all of it at once, which gives the same and takes more memory.
      gps: Keep where a picture was taken; date, camera, dpi and colour profile are always kept.
      open_: Show the result at the end: the picture, or the folder of several.
    """
    from zmar_jax.restore.files import Options, restore_files
    from zmar_jax.restore.restorer import load_restorer
    from zmar_jax.runtime import compilation

    check_sampling(heat, samples, seed)
    check_open(open_, out_place)
    if std and samples < 2:
        raise UsageError("--std needs --samples of 2 or more")
    lost = mask if mask in ("auto", "none") else local(mask)
    if isinstance(lost, Path) and not lost.exists():
        raise UsageError(f"--mask {mask}: no such file or folder; or say auto or none")
    if brightness != "auto" and not 0 < brightness < math.inf:
        raise UsageError(f"--brightness must be auto or a factor above 0, got {brightness}")
    limit = memory_limit(memory)
    check_devices(devices)
    options = Options(heat, samples, seed, std, lost, brightness, views, gps)
    with contextlib.ExitStack() as stack:
        here = [stack.enter_context(fetched(place, _missing)) for place in inputs]
        written = stack.enter_context(published(out_place))
        given = dict(zip([*here, written.path], [*inputs, out_place], strict=True))

        def shown(text: str) -> str:
            """With the names that the user gave."""
            for path, place in given.items():
                text = text if path == place else text.replace(str(path), str(place))
            return text

        paths, notes = _paths(here, written.path, std)
        compilation.enable_cache()
        restorer = load_restorer(checkpoint, limit, devices, stripes)
        say_source(checkpoint, restorer.source)
        with progress(len(paths), "restoring", written.put, shown) as step:
            failed = restore_files(
                restorer, paths, options, step, lambda text: err.print(shown(text))
            )
        done = Text(f"{len(paths) - len(failed)} of {len(paths)} restored into ")
        out.print(done.append(link(out_place)).append("".join(f"; {note}" for note in notes)))
        if not inputs and not failed:
            _show_sample(*paths[0], shown)
        if open_ and len(failed) < len(paths):
            beside = paths[0][0].with_name(PANEL)
            show(beside if not inputs else paths[0][1] if len(paths) == 1 else written.path)
    return 1 if failed else 0


def _paths(
    inputs: Sequence[Path], target: Path, std: bool
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Each picture with what it becomes, and what there is to say of the others."""
    from zmar_jax.imaging.images import find_photos
    from zmar_jax.imaging.outputs import names_file, output_file, output_paths
    from zmar_jax.restore.files import std_path

    notes: list[str] = []
    if inputs:
        found = find_photos(inputs, skip=target, tell=notes.append)
        place = output_file if names_file(target) else output_paths
        paths = place(found, target, beside=lambda file: [std_path(file)] if std else [])
        make_folder(target.parent if names_file(target) else target)
    else:
        check_folder(target)
        make_folder(target)
        paths = [_write_sample(target)]
    return paths, notes


def _missing(url: str) -> Exception:
    return PlaceError(f"{url}: nothing lies there; check the name")


def _write_sample(out_dir: Path) -> tuple[Path, Path]:
    """The sample's dark picture, written, and where the restored one goes."""
    from zmar_jax.data.sample import sample
    from zmar_jax.imaging.images import Photo, write_photo

    low = out_dir / "sample" / "input.png"
    write_photo(low, Photo(sample()[0]))
    return low, out_dir / "sample" / "restored.png"


def _show_sample(low: Path, restored: Path, shown: Callable[[str], str]) -> None:
    """Writes the pictures side by side with the ground truth, and says where everything is."""
    from zmar_jax.data.sample import TITLE, sample
    from zmar_jax.imaging.images import Photo, read_photo, write_photo
    from zmar_jax.imaging.metrics import score
    from zmar_jax.train.log import panel

    dark, gt = sample()
    image = read_photo(restored).rgb
    side_by_side = low.with_name(PANEL)
    write_photo(side_by_side, Photo(panel([dark], [image], [gt])))
    table = table_of(TITLE)
    table.add_row("input", f"{shown(str(low))}  {score(dark, gt).psnr:.1f} dB")
    table.add_row("restored", f"{shown(str(restored))}  {score(image, gt).psnr:.1f} dB")
    table.add_row("input | restored | ground truth", shown(str(side_by_side)))
    out.print(table)
