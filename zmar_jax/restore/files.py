"""Restoring photographs that are files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from zmar_jax.data.masks import read_mask
from zmar_jax.imaging.images import (
    ImageError,
    Photo,
    Step,
    check_format,
    find_photos,
    read_photo,
    size_text,
    write_photo,
)
from zmar_jax.imaging.outputs import bare_name
from zmar_jax.imaging.views import Views
from zmar_jax.restore.restorer import Brightness, Restorer, check_size


@dataclasses.dataclass(frozen=True)
class Options:
    """How `restore_files` restores: as `Restorer.sample`.

    std: write the deviation, too. mask: also a file, or a folder of one for each picture. gps: keep
    where a picture was taken.
    """

    heat: float = 0.0
    samples: int = 1
    seed: int = 0
    std: bool = False
    mask: Path | Literal["auto", "none"] = "auto"
    brightness: Brightness = "auto"
    views: Views = "auto"
    gps: bool = False


def restore_files(
    restorer: Restorer,
    paths: Sequence[tuple[Path, Path]],
    options: Options,
    done: Step,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Restores each (source, target); a failure is reported and the others go on.

    Args:
      done: called after each file with source, target, and the error or None.
      tell: called with how many pixels of a picture are lost.

    Returns:
      The sources that failed.
    """
    failed = []
    for source, target in paths:
        error = None
        try:
            share = restore_file(restorer, source, target, options)
            tell(f"{source}: {f'{100 * share:.1f} %' if share else 'none'} of its pixels lost")
        except (ImageError, ValueError, MemoryError, jax.errors.JaxRuntimeError) as e:
            failed.append(source)
            error = e
        done(source, target, error)
    return failed


def restore_file(restorer: Restorer, source: Path, target: Path, options: Options) -> float:
    """Restores one file; the deviation, if wanted, goes beside it as `std_path(target)`.

    Returns:
      The share of its pixels that are lost.
    """
    photo = read_photo(source, options.gps)
    check_format(target, photo)
    check_size(photo.rgb, restorer.config)
    mask = options.mask
    if isinstance(mask, Path):
        mask = _read_mask(mask, source, photo.rgb)
    hidden = None if photo.alpha is None else photo.alpha == 0
    seen = restorer.see(photo.rgb, mask, options.brightness, hidden)
    image, std = restorer.sample_seen(
        seen, options.heat, options.seed, options.samples, options.views
    )
    write_photo(target, photo.with_rgb(image))
    if options.std:
        write_photo(std_path(target), Photo(np.round(std).astype(photo.rgb.dtype)))
    return seen.lost_share


def _read_mask(path: Path, source: Path, image: np.ndarray) -> np.ndarray:
    """The mask of a picture: `path`, or the file in that folder that is called like the picture."""
    if path.is_dir():
        called = bare_name(source).name
        found = [file for file, name in find_photos([path]) if bare_name(name).name == called]
        if len(found) != 1:
            raise ImageError(
                f"{path}: expected one mask called {called}, found {len(found)}; "
                "give each picture one of its name, or use --mask auto"
            )
        path = found[0]
    lost = read_mask(path)
    if lost.shape != image.shape[:2]:
        raise ImageError(
            f"{path}: a mask of {size_text(lost.shape)} for a picture of "
            f"{size_text(image.shape)}; give one of the picture's size"
        )
    return lost


def std_path(target: Path) -> Path:
    """Where the standard deviation goes: `a/b.png` -> `a/b.std.png`."""
    return target.with_suffix(f".std{target.suffix}")
