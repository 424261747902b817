"""Degraded copies of photographs: files in, files out."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from zmar_jax.config import DarkenConfig, MaskConfig
from zmar_jax.data.degrade import darken_picture
from zmar_jax.data.folders import Tell
from zmar_jax.data.hashing import id_seed
from zmar_jax.data.masks import apply_mask, draw_mask, load_masks
from zmar_jax.imaging.images import ImageError, Photo, read_photo, write_photo
from zmar_jax.imaging.outputs import distinct_names, output_paths


@dataclasses.dataclass(frozen=True)
class CopyOptions:
    """What copies lose. A copy depends on the seed and its own relative name alone."""

    seed: int
    masks: MaskConfig
    darken: DarkenConfig | None = None
    panel: bool = False
    """Also write a picture of the steps next to each other."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """Where the copy of one photograph comes from and goes to."""

    source: Path
    name: str
    """Relative to the input, as of `outputs.distinct_names`."""
    image: Path
    mask: Path
    panel: Path


def plan_copies(found: Sequence[tuple[Path, Path]], out_dir: Path) -> list[Copy]:
    """PNGs in images/, masks/ and panels/ of `out_dir`, for what `find_photos` found.

    Raises:
      ImageError: two would get the same name, or one replace a photograph.
    """
    folders = [output_paths(found, out_dir / name) for name in ("images", "masks", "panels")]
    return [
        Copy(source, name.as_posix(), *(target for _, target in targets))
        for (source, _), name, *targets in zip(found, distinct_names(found), *folders, strict=True)
    ]


def write_copies(
    copies: Sequence[Copy],
    options: CopyOptions,
    done: Callable[[Path, Path, Exception | None], None],
    tell: Tell = lambda text: None,
) -> list[Path]:
    """Writes each copy and its mask; a failure is reported and the others go on.

    Args:
      done: called after each with source, target, and the error or None.
      tell: as of `images.find_photos`, for the folder of masks.

    Returns:
      The sources that failed.

    Raises:
      ValueError: the folder of masks cannot be used; nothing is written.
    """
    masks = load_masks(options.masks, tell)
    failed = []
    for copy in copies:
        error = None
        try:
            _write_copy(copy, options, masks)
        except (ImageError, MemoryError) as e:
            failed.append(copy.source)
            error = e
        done(copy.source, copy.image, error)
    return failed


def _write_copy(copy: Copy, options: CopyOptions, masks: Sequence[np.ndarray]) -> None:
    photo = read_photo(copy.source)
    steps = [eight_bits(photo.rgb)] if options.panel else []
    seed = id_seed(options.seed, copy.name)
    if options.darken:
        photo = darken_photo(photo, seed, options.darken)
        steps.append(photo.rgb)
    lost = draw_mask(seed, photo.rgb.shape[:2], options.masks, masks)
    photo = photo.with_rgb(apply_mask(photo.rgb, lost))
    write_photo(copy.image, photo)
    write_photo(copy.mask, _mask_photo(lost))
    if options.panel:
        write_photo(copy.panel, Photo(_side_by_side([*steps, eight_bits(photo.rgb)])))


def darken_photo(photo: Photo, seed: int, config: DarkenConfig) -> Photo:
    """`darken_picture` of any photograph: 8 bits; alpha stays, grey has one noise and no cast."""
    rgb = darken_picture(eight_bits(photo.rgb), seed, config)
    if photo.grey:
        rgb = np.repeat(rgb[..., 1:2], 3, axis=-1)
    alpha = None if photo.alpha is None else eight_bits(photo.alpha)
    return dataclasses.replace(photo, rgb=rgb, alpha=alpha)


def _mask_photo(lost: np.ndarray) -> Photo:
    return Photo(np.repeat(np.where(lost, np.uint8(255), np.uint8(0))[..., None], 3, -1), grey=True)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 of uint8 or uint16 pixels, rounded."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [h, w, 3] from left to right, with white between them."""
    height, width, _ = images[0].shape
    gap = np.full((height, max(width // 60, 1), 3), 255, np.uint8)
    return np.hstack([part for image in images for part in (gap, image)][1:])
