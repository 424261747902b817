"""Zero-element masks (docs/datasets.md): procedural ones, and folders of mask images.

A mask is bool [height, width], True where the pixel is lost. `xp` is numpy or jax.numpy; both give
the same mask, as there is no arithmetic but of integers.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zmar_jax.config import MaskConfig
from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import Tell
from zmar_jax.data.hashing import Array, below, fold, normal_quantiles, top16
from zmar_jax.files.places import local
from zmar_jax.imaging.images import find_photos, read_photo

Window = tuple[Array, Array, int, int]
"""Top and left (may be traced), height and width of a part of an image, pixels."""

ROWS, COLUMNS = 6, 8
"""Regions of an image: six bands, each cut into eight at its own places."""
EDGES = np.repeat(np.array([1, 2, 3, 4, 6, 8, 12], np.int32), [11, 15, 5, 6, 5, 4, 2])
"""Edges of the blocks, pixels, one for each of the regions."""
TILES, KNOTS = 4, (5, 3)
"""The density is drawn for 4x4 tiles, then for 5x3 knots in each, as shuffled normal scores."""
TILE_SPREAD, TILE_SPREAD_FALL, KNOT_SPREAD, NOISE, TAIL = 1.05, 1.6, 1.2, 0.7, 0.12
"""How uneven tiles are (less so the more is lost), knots, and blocks; together with EDGES chosen
so that masks measure as the authors' do (tests/test_masks.py)."""
GRID = 64
"""The density is known, and the threshold is chosen, at 64x64 points of an image."""
UNIT = 4096
_STREAM = 0x6D61736B


def lost_pixels(
    seed: Array,
    height: int,
    width: int,
    share: tuple[float, float] = (0.12, 0.37),
    window: Window | None = None,
    xp: Any = np,
) -> Array:
    """A procedural mask: axis-aligned blocks, of another size in each region of the image.

    A block is lost where a smooth random density plus the block's own noise exceeds a threshold,
    which is the one that loses the drawn share of the whole image.

    Args:
      seed: below 2**32; may be traced.
      height, width: of the whole image, pixels.
      share: range of the lost share of the whole image; the error's deviation is 0.005.
      window: the part to compute, inside the image; None is all of it.

    Returns:
      bool [height, width] of the window, equal to that part of the whole mask.
    """
    top, left, h, w = window or (0, 0, height, width)
    plan = _plan(seed, height, width, share, xp)
    y, x = (start + xp.arange(n, dtype=xp.int32) for start, n in ((top, h), (left, w)))
    return _levels(plan, y, x, xp) > plan.threshold


class _Plan(NamedTuple):
    """What is drawn once for an image. All int32, but for the uint32 seed."""

    size: tuple[int, int]
    seed: Array
    bands: Array
    """[ROWS - 1] where bands end, pixels from the top."""
    cuts: Array
    """[ROWS, COLUMNS - 1] where the regions of a band end, pixels from the left."""
    edges: Array
    """[ROWS, COLUMNS] edge of a region's blocks, pixels."""
    density: Array
    """[GRID, GRID], in 1/UNIT."""
    threshold: Array


def _plan(seed: Array, height: int, width: int, share: tuple[float, float], xp: Any) -> _Plan:
    draw = functools.partial(fold, fold(seed, _STREAM, xp=xp), xp=xp)
    row = np.arange(ROWS)[:, None]
    low, high = _samples(share)
    lost = low + below(draw(0), high - low + 1, xp)
    edges = xp.asarray(EDGES)[xp.argsort(draw(1, np.arange(ROWS * COLUMNS)), stable=True)]
    plan = _Plan(
        size=(height, width),
        seed=draw(2),
        bands=_ends(draw(3, np.arange(ROWS - 1)), height, xp),
        cuts=_ends(draw(4, row, np.arange(COLUMNS - 1)), width, xp),
        edges=edges.reshape(ROWS, COLUMNS),
        density=_density(draw(5), lost, xp),
        threshold=xp.int32(0),
    )
    y, x = ((2 * xp.arange(GRID, dtype=xp.int32) + 1) * n // (2 * GRID) for n in plan.size)
    levels, place = _levels(plan, y, x, xp).reshape(-1), GRID * GRID - 1 - lost
    # one traced place would not do for a partition
    ordered = np.partition(levels, place) if xp is np else xp.sort(levels)
    return plan._replace(threshold=ordered[place])


def _samples(share: tuple[float, float]) -> tuple[int, int]:
    """The range of lost points of the grid: 1 % inside `share`, as the grid is only a sample."""
    inset = min(0.01, (share[1] - share[0]) / 2)
    low, high = (round(GRID * GRID * s) for s in (share[0] + inset, share[1] - inset))
    return low, high


def _ends(bits: Array, length: int, xp: Any) -> Array:
    """[..., n] where n of n + 1 about equal parts of `length` end: jittered by 0.3 of a part."""
    n = bits.shape[-1]
    parts = 256 * xp.broadcast_to(xp.arange(1, n + 1, dtype=xp.int32), bits.shape)
    return (parts + below(bits, 160, xp) - 80) * length // (256 * (n + 1))


def _density(seed: Array, lost: Array, xp: Any) -> Array:
    """[GRID, GRID] in 1/UNIT: about normal, tiles differing less the more points are lost."""
    tiles, knots = TILES * TILES, KNOTS[0] * KNOTS[1]
    spread = round(TILE_SPREAD * 256) - (round(TILE_SPREAD_FALL * 256) * lost) // GRID**2
    tile = _shuffled_scores(fold(seed, 0, np.arange(tiles), xp=xp), xp)
    knot = _shuffled_scores(fold(seed, 1, np.arange(tiles)[:, None], np.arange(knots), xp=xp), xp)
    both = (tile * xp.maximum(spread, 0))[:, None] + knot * round(KNOT_SPREAD * 256) >> 8
    both = both.reshape(TILES, TILES, *KNOTS).swapaxes(1, 2)
    both = both.reshape(TILES * KNOTS[0], TILES * KNOTS[1])
    return _stretch(_stretch(both).T).T >> 12


def _shuffled_scores(bits: Array, xp: Any) -> Array:
    """int32 like bits [..., n], in 1/UNIT: n evenly spaced normal quantiles, in random order."""
    n = bits.shape[-1]
    quantiles = normal_quantiles()[((np.arange(n) + 0.5) / n * 65536).astype(int)]
    scores = np.rint(UNIT * quantiles).astype(np.int32)
    return xp.asarray(scores)[xp.argsort(bits, stable=True)]


def _stretch(x: Array) -> Array:
    """int32 [n, m] -> [GRID, m]: 64 times x, interpolated between the centres of its rows."""
    n = x.shape[0]
    at = np.clip((2 * np.arange(GRID) + 1) * n * 32 // GRID - 32, 0, 64 * (n - 1))
    before, part = at // 64, (at % 64).astype(np.int32)[:, None]
    return x[before] * (64 - part) + x[np.minimum(before + 1, n - 1)] * part


@functools.cache
def _noise() -> np.ndarray:
    """int32 [65536], in 1/UNIT: normal quantiles with a long upper tail, for stray blocks."""
    q = normal_quantiles()
    return np.rint(UNIT * NOISE * (q + TAIL * np.maximum(q, 0) ** 3)).astype(np.int32)


def _levels(plan: _Plan, y: Array, x: Array, xp: Any) -> Array:
    """int32 [h, w] density plus noise, in 1/UNIT, of the blocks at rows y [h] and columns x [w]."""
    height, width = plan.size
    band = (y[:, None] >= plan.bands[None]).sum(1, dtype=xp.int32)
    column = (x[None, :, None] >= plan.cuts[:, None]).sum(2, dtype=xp.int32)
    # Of each row of pixels in each region of its band [h, COLUMNS] ...
    edge = plan.edges[band]
    block = y[:, None] // edge
    region = band[:, None] * COLUMNS + xp.arange(COLUMNS, dtype=xp.int32)[None]
    row_seed = fold(plan.seed, region, block, xp=xp)
    row_knot = _grid_line(block, edge, height, xp) * GRID
    # ... of each column of pixels in each band [ROWS, w] ...
    start = xp.arange(ROWS, dtype=xp.int32)[:, None] * COLUMNS
    edge = xp.take(plan.edges, start + column)
    block = x[None] // edge
    column_knot = _grid_line(block, edge, width, xp)
    # ... and of each pixel.
    of_row = xp.arange(len(y), dtype=xp.int32)[:, None] * COLUMNS + column[band]
    bits = fold(xp.take(row_seed, of_row), block[band], xp=xp)
    knot = xp.take(row_knot, of_row) + column_knot[band]
    return xp.take(plan.density, knot) + xp.take(xp.asarray(_noise()), top16(bits, xp))


def _grid_line(block: Array, edge: Array, length: int, xp: Any) -> Array:
    """The line of the grid at the centre of a block."""
    return xp.minimum(block * edge + edge // 2, length - 1) * GRID // length


def draw_mask(
    seed: int,
    size: tuple[int, ...],
    config: MaskConfig,
    masks: Sequence[np.ndarray] = (),
    window: Window | None = None,
) -> np.ndarray:
    """The mask of one image, as `config` says: the same one whenever the seed is the same.

    Args:
      seed: below 2**32; for a test image `hashing.id_seed` of the run's seed and the image's id.
      size: height and width of the whole image, pixels.
      masks: what `load_masks(config)` gave.
      window: as for `lost_pixels`.

    Returns:
      bool [height, width] of the window.
    """
    height, width = size
    if config.source == "none":
        return np.zeros(window[2:] if window else (height, width), bool)
    if config.source == "procedural":
        return lost_pixels(seed, height, width, config.share, window)
    which = int(fold(seed, _STREAM)) % len(masks)
    return resize_mask(masks[which], height, width, window)


def lose_pixels(
    image: np.ndarray,
    seed: int,
    size: tuple[int, int],
    window: Window,
    config: MaskConfig,
    masks: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """A crop [h, w, c], the `window` of an image of `size` (height, width), after its losses."""
    return apply_mask(image, draw_mask(seed, size, config, masks, window))


def apply_mask(image: Array, lost: Array, xp: Any = np) -> Array:
    """The image [h, w, c] with zeros in all channels where `lost` [h, w]."""
    if xp.issubdtype(image.dtype, xp.integer):
        return image * ~lost[..., None]  # in less than half of the time
    return xp.where(lost[..., None], xp.zeros((), image.dtype), image)


def load_masks(config: MaskConfig, tell: Tell = lambda text: None) -> tuple[np.ndarray, ...]:
    """The masks that `draw_mask` needs: those of the folder in `config`, if it names one.

    `tell` as of `images.find_photos`.
    """
    if config.source in ("none", "procedural"):
        return ()
    return read_masks(local(config.source), tell)


def read_masks(folder: Path, tell: Tell = lambda text: None) -> tuple[np.ndarray, ...]:
    """The mask images of a folder, sorted by name; `white_pixels` says what is lost.

    Raises:
      ImageError: the folder is missing or without images, or an image cannot be read.
      DataError: it is a file; a mask loses no pixel, or every one; or several are of no use.
    """
    if folder.is_file():
        raise DataError(f"{folder}: expected a folder of mask images, got a file; name its folder")
    masks: list[np.ndarray] = []
    problems: list[ValueError] = []
    for path, _ in find_photos([folder], tell=tell):
        try:
            masks.append(read_mask(path))
            if not masks[-1].any():
                raise DataError(f"{path}: a mask that loses no pixel; remove it")
        except ValueError as e:
            problems.append(e)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError("; ".join(map(str, problems)))
    return tuple(masks)


def read_mask(path: Path) -> np.ndarray:
    """A mask image, bool [H, W]; ImageError where it cannot be read, else as `white_pixels`."""
    return white_pixels(read_photo(path).rgb, str(path))


def white_pixels(rgb: np.ndarray, name: str) -> np.ndarray:
    """The lost pixels, bool [H, W], of a mask, uint8 or uint16 [H, W, 3]: those that are white.

    White is above half of the range of its values, which is 0 to 1 where no value is above 1, else
    that of its depth. A black image is a mask that loses nothing.

    Args:
      name: what messages call it.

    Raises:
      DataError: it loses every pixel; or it is not black, but no pixel is white.
    """
    brightest, white = int(rgb.max()), np.iinfo(rgb.dtype).max
    half = white // 2 if brightest > 1 else 0
    lost = np.all(rgb > half, axis=-1)
    if np.all(lost):
        raise DataError(
            f"{name}: expected a mask, white where pixels are lost, got one that loses every "
            "pixel; remove it, or invert it"
        )
    if brightest and not np.any(lost):
        raise DataError(
            f"{name}: expected a mask, white where pixels are lost, got one without a pixel above "
            f"{half} in all channels (the highest value is {brightest} of {white}); paint lost "
            f"pixels {white}, or have values of 0 and 1"
        )
    return lost


def masks_digest(masks: Sequence[np.ndarray]) -> str:
    """16 hex digits that change with any pixel of the masks, and with their order."""
    digest = hashlib.blake2b(digest_size=8)
    for mask in masks:
        digest.update(repr(mask.shape).encode() + np.packbits(mask).tobytes())
    return digest.hexdigest()


def resize_mask(
    lost: np.ndarray, height: int, width: int, window: Window | None = None
) -> np.ndarray:
    """`lost` as the mask of an image [height, width], nearest at half-pixel centres; its window."""
    top, left, h, w = window or (0, 0, height, width)
    rows = (2 * (top + np.arange(h)) + 1) * lost.shape[0] // (2 * height)
    columns = (2 * (left + np.arange(w)) + 1) * lost.shape[1] // (2 * width)
    return lost[rows[:, None], columns]
