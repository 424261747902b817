"""What is evaluated: dark pictures and their ground truths, of a benchmark or a folder."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import skimage.data

from zmar_jax.config import DATASETS, DarkenConfig, MaskConfig
from zmar_jax.data.copies import darken_photo, eight_bits
from zmar_jax.data.errors import DataError
from zmar_jax.data.hashing import id_seed
from zmar_jax.data.layouts import pairing_key
from zmar_jax.data.masks import apply_mask, draw_mask, load_masks
from zmar_jax.data.pictures import BUILT_IN, first_of_each_scene
from zmar_jax.images import find_photos, read_photo, size_text

Found = Sequence[tuple[Path, Path]]
"""Files and their names relative to a folder, as `images.find_photos` returns them."""

LOW_FOLDERS, GT_FOLDERS = ("low", "input"), ("gt", "high", "normal", "target")
"""Subfolders, in any case, that make a folder one of pairs."""
BUILT_IN_NAME = "builtin"
"""The photographs that come with scikit-image and that training keeps for validation."""
SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Source:
    """What to evaluate on, and how its dark pictures are made."""

    data: str
    """A benchmark, a folder, or `builtin`."""
    data_dir: Path = Path("data")
    """Where the benchmarks were prepared."""
    masks: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    darken: DarkenConfig = dataclasses.field(default_factory=DarkenConfig)
    """Of clean photographs."""
    sdsd_frames: int | None = None
    """Frames taken of each SDSD scene; None is all."""
    seed: int = 0
    """Of masks and darkening."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs by index. `read(i)` gives low and gt, uint8 [H, W, 3], the same at every call.

    ids: unique; sizes: (height, width); digests: change with the files of a pair and its mask.
    """

    name: str
    kind: Literal["benchmark", "pairs", "photographs"]
    ids: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    digests: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]


def kind_of(data: str) -> Literal["benchmark", "pairs", "photographs"]:
    """What `data` names: a benchmark; a folder of pairs; or clean photographs.

    A folder holds pairs if it has one subfolder of `LOW_FOLDERS` and one of `GT_FOLDERS`, and
    photographs if it has none of these.

    Raises:
      DataError: neither a benchmark nor a folder; or a folder that is neither of the two.
    """
    if data in DATASETS:
        return "benchmark"
    if data == BUILT_IN_NAME:
        return "photographs"
    low, gt = _subfolders(data)
    if len(low) == len(gt) == 1:
        return "pairs"
    if low or gt:
        found = ", ".join(path.name for path in low + gt)
        raise DataError(
            f"{data}: expected one subfolder called {' or '.join(LOW_FOLDERS)} and one called "
            f"{', '.join(GT_FOLDERS[:-1])} or {GT_FOLDERS[-1]}, or none of these and clean "
            f"photographs; found {found}"
        )
    return "photographs"


def open_pairs(source: Source) -> Pairs:
    """The pairs of `source`, sorted by id; the files of a folder are all read once, to check them.

    Raises:
      DataError, ImageError: nothing there, a file without a partner, pairs of two sizes, pictures
        smaller than 16x16, or a file that cannot be read; all that are wrong are named.
    """
    kind = kind_of(source.data)
    masks = load_masks(source.masks)
    pairs = {"benchmark": _benchmark, "pairs": _folder_pairs, "photographs": _photographs}[kind](
        source
    )
    salt = hashlib.blake2b(digest_size=8)
    for mask in masks:
        salt.update(repr(mask.shape).encode() + np.packbits(mask).tobytes())

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        low, gt = pairs.read(i)
        seed = id_seed(source.seed, pairs.ids[i])
        return apply_mask(low, draw_mask(seed, low.shape[:2], source.masks, masks)), gt

    digests = tuple(f"{digest}-{salt.hexdigest()}" for digest in pairs.digests)
    return dataclasses.replace(pairs, read=read, digests=digests)


def match(low: Found, gt: Found) -> list[tuple[str, Path, Path]]:
    """(id, low, gt) of the files that have the same name but for suffix, case, and a leading
    low, normal or high; sorted by id, the name of low without suffix.

    Raises:
      DataError: lists each file without a partner, and each name that is there twice.
    """
    problems: list[str] = []
    lows, gts = _keyed(low, problems), _keyed(gt, problems)
    problems += [f"{lows[key][0]}: no partner" for key in lows.keys() - gts.keys()]
    problems += [f"{gts[key][0]}: no partner" for key in gts.keys() - lows.keys()]
    if problems:
        raise DataError("\n  ".join(["files that do not pair", *sorted(problems)]))
    pairs = [(_id(name), path, gts[key][0]) for key, (path, name) in lows.items()]
    return sorted(pairs)


def read_eight_bits(path: Path) -> np.ndarray:
    """A photograph's pixels, uint8 [H, W, 3]."""
    return eight_bits(read_photo(path).rgb)


def _benchmark(source: Source) -> Pairs:
    # needs tensorflow-datasets, which takes seconds to import
    from zmar_jax.data.prepared import open_prepared

    prepared = open_prepared(source.data, source.data_dir, "test")
    chosen = list(range(len(prepared)))
    if source.data.startswith("sdsd") and source.sdsd_frames:
        chosen = first_of_each_scene(prepared.ids, source.sdsd_frames)
    return Pairs(
        source.data,
        "benchmark",
        tuple(prepared.ids[i] for i in chosen),
        tuple(prepared.sizes[i] for i in chosen),
        tuple(prepared.checksums[i] for i in chosen),
        lambda i: prepared[chosen[i]][1:],
    )


def _folder_pairs(source: Source) -> Pairs:
    (low,), (gt,) = _subfolders(source.data)
    pairs = match(find_photos([low]), find_photos([gt]))

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        return read_eight_bits(pairs[i][1]), read_eight_bits(pairs[i][2])

    files = [(a, b) for _, a, b in pairs]
    name = Path(source.data).expanduser().resolve().name
    return Pairs(name, "pairs", tuple(id_ for id_, _, _ in pairs), *inspect(files), read)


def _photographs(source: Source) -> Pairs:
    """Clean photographs, darkened; with their masks, as `zmar-jax mask --darken` writes them."""
    if source.data == BUILT_IN_NAME:
        folder = Path(skimage.data.data_dir)
        found = [(folder / name, Path(name)) for name in BUILT_IN["val"]]
    else:
        found = find_photos([Path(source.data).expanduser()])
    ids = tuple(_id(name) for _, name in found)
    if len(set(ids)) < len(ids):
        twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
        raise DataError(f"{source.data}: more than one photograph called {', '.join(twice)}")

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        photo = read_photo(found[i][0])
        dark = darken_photo(photo, id_seed(source.seed, ids[i]), source.darken)
        return dark.rgb, eight_bits(photo.rgb)

    name = (
        source.data
        if source.data == BUILT_IN_NAME
        else Path(source.data).expanduser().resolve().name
    )
    return Pairs(name, "photographs", ids, *inspect([(path,) for path, _ in found]), read)


def inspect(
    examples: Sequence[tuple[Path, ...]],
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Sizes and digests of the files of each example; DataError names all that cannot be used."""
    sizes, digests, problems = [], [], []
    for paths in examples:
        digest, shapes = hashlib.blake2b(digest_size=16), []
        for path in paths:
            try:
                shapes.append(read_photo(path).rgb.shape[:2])
                digest.update(hashlib.blake2b(path.read_bytes()).digest())
            except ValueError as e:
                problems.append(str(e))
        if len(set(shapes)) > 1:
            problems.append(
                f"{paths[0]}: {size_text(shapes[0])}, but {paths[1]} is {size_text(shapes[1])}"
            )
        elif shapes and min(shapes[0]) < SMALLEST:
            problems.append(
                f"{paths[0]}: {size_text(shapes[0])}, smaller than {SMALLEST}x{SMALLEST}"
            )
        sizes.append(shapes[0] if shapes else (0, 0))
        digests.append(digest.hexdigest())
    if problems:
        raise DataError("\n  ".join([f"{len(problems)} problem(s) with the pictures", *problems]))
    return tuple(sizes), tuple(digests)


def _subfolders(data: str) -> tuple[list[Path], list[Path]]:
    """The subfolders of a folder that hold low pictures, and ground truths."""
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{data}: no such folder, and no benchmark; name a folder, {', '.join(DATASETS)} or "
            f"{BUILT_IN_NAME} (those that come with scikit-image)"
        )
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as e:
        raise DataError(f"{data}: cannot be read ({e.strerror})") from e
    low, gt = (
        [path for path in below if path.name.casefold() in names]
        for names in (LOW_FOLDERS, GT_FOLDERS)
    )
    return low, gt


def _keyed(found: Found, problems: list[str]) -> dict[str, tuple[Path, Path]]:
    keyed: dict[str, tuple[Path, Path]] = {}
    for path, name in found:
        key = (name.parent / pairing_key(name.stem)).as_posix()
        if key in keyed:
            problems.append(f"{path}: pairs as {key}, and so does {keyed[key][0]}")
        keyed.setdefault(key, (path, name))
    return keyed


def _id(name: Path) -> str:
    return name.with_suffix("").as_posix()
