"""What is evaluated: dark pictures, with or without ground truths, of a benchmark or a folder."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import skimage.data

from zmar_jax.config import BENCHMARKS, DarkenConfig, MaskConfig, ModelConfig
from zmar_jax.data.copies import darken_photo, eight_bits
from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import Found, PairSet, choose, refuse_pairs, role_of, survey
from zmar_jax.data.hashing import id_seed
from zmar_jax.data.masks import apply_mask, draw_mask, load_masks, masks_digest
from zmar_jax.data.pictures import BUILT_IN, first_of_each_scene
from zmar_jax.evaluate import niqe
from zmar_jax.files.places import Place, local
from zmar_jax.imaging.images import find_photos, read_photo, size_text
from zmar_jax.imaging.outputs import distinct_names
from zmar_jax.runtime.stop import stop_if_asked

BUILT_IN_NAME = "builtin"
"""The photographs that come with scikit-image and that training keeps for validation."""
SMALLEST = ModelConfig().smallest
Kind = Literal["benchmark", "pairs", "photographs", "dark"]
"""`photographs` are clean and get darkened; `dark` pictures have no ground truth."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What to evaluate on, and how its dark pictures are made."""

    data: str
    """A benchmark, a folder, or `builtin`."""
    data_dir: Place = Path("data")
    """Where the benchmarks were prepared."""
    masks: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    darken: DarkenConfig = dataclasses.field(default_factory=DarkenConfig)
    """Of clean photographs."""
    sdsd_frames: int | None = None
    """Frames taken of each SDSD scene; None is all."""
    seed: int = 0
    """Of masks and darkening."""
    reference: bool = True
    """Whether there are ground truths, or they can be made."""
    gt: str | None = None
    """The folder of the ground truths, where `data` is that of the dark pictures."""
    clean: bool = False
    """Whether `data` holds clean photographs, whatever its folders are called."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs by index. `read(i)` gives low and gt, uint8 [H, W, 3], the same at every call; gt is
    None for all pictures of kind `dark`.

    ids: unique; sizes: (height, width); digests: change with the files of a pair and its mask;
    notes: what the user is to know about them, in one line each.
    """

    name: str
    kind: Kind
    ids: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    digests: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of all names and inputs."""
        names = hashlib.blake2b(digest_size=16)
        for each in zip(self.ids, self.digests, strict=True):
            names.update(" ".join(each).encode("utf-8", "surrogateescape"))
        return names.hexdigest()


def kind_of(data: str, reference: bool = True, gt: str | None = None, clean: bool = False) -> Kind:
    """What `data` names: a benchmark; a folder with pairs; or clean photographs.

    Without `reference` a folder holds dark pictures. The others are as of `Source`.

    Raises:
      DataError: neither a benchmark nor a folder; or a folder that may hold pairs, but they cannot
        be told.
    """
    if reference and gt is None:
        if data in BENCHMARKS:
            return "benchmark"
        if data == BUILT_IN_NAME:
            return "photographs"
    if not local(data).is_dir():
        raise DataError(
            f"{data}: no such folder, and no benchmark; name a folder, {', '.join(BENCHMARKS)} or "
            f"{BUILT_IN_NAME} (those that come with scikit-image)"
        )
    if gt is not None:
        return "pairs"
    if clean or not reference:
        return "photographs" if clean else "dark"
    found = survey(data)
    if not found.sets:
        advice = "name both folders with --data and --gt, or say --clean if all are photographs"
        refuse_pairs(data, found, advice)
    return "pairs" if found.sets else "photographs"


def open_pairs(source: Source) -> Pairs:
    """The pairs of `source`, sorted by id; the files of a folder are all read once, to check them.

    Raises:
      DataError, ImageError: nothing there, a file without a partner, pairs of two sizes, pictures
        smaller than SMALLEST, or a file that cannot be read; all that are wrong are named.
    """
    openers: dict[Kind, Callable[[Source], Pairs]] = {
        "benchmark": _benchmark,
        "pairs": _folder_pairs,
        "photographs": _photographs,
        "dark": _dark_pictures,
    }
    kind = kind_of(source.data, source.reference, source.gt, source.clean)
    notes: list[str] = []
    masks = load_masks(source.masks, notes.append)
    pairs = openers[kind](source)
    salt = masks_digest(masks)

    def read(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        low, gt = pairs.read(i)
        seed = id_seed(source.seed, pairs.ids[i])
        return apply_mask(low, draw_mask(seed, low.shape[:2], source.masks, masks)), gt

    digests = tuple(f"{digest}-{salt}" for digest in pairs.digests)
    return dataclasses.replace(pairs, read=read, digests=digests, notes=(*pairs.notes, *notes))


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
    notes: list[str] = []
    if source.gt is not None:
        chosen = PairSet(".", *(local(name) for name in (source.data, source.gt)))
    else:
        chosen = choose(source.data, survey(source.data), ("test", "val"))
        if chosen.place != ".":
            notes.append(f"{source.data}: the pairs of {chosen.place} in it are taken")
    pairs = chosen.match(notes.append)

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        return read_eight_bits(pairs[i][1]), read_eight_bits(pairs[i][2])

    files = [(a, b) for _, a, b in pairs]
    ids = tuple(id_ for id_, _, _ in pairs)
    name = (Path(_name(source.data)) / chosen.place).as_posix()
    return Pairs(name, "pairs", ids, *inspect(files), read, tuple(notes))


def _photographs(source: Source) -> Pairs:
    """Clean photographs, darkened; with their masks, as `zmar-jax mask --darken` writes them."""
    notes: list[str] = []
    if source.data == BUILT_IN_NAME:
        folder = Path(skimage.data.data_dir)
        found = [(folder / name, Path(name)) for name in BUILT_IN["val"]]
    else:
        found = find_photos([local(source.data)], tell=notes.append)
    ids = _ids(source.data, found)

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        photo = read_photo(found[i][0])
        dark = darken_photo(photo, id_seed(source.seed, ids[i]), source.darken)
        return dark.rgb, eight_bits(photo.rgb)

    name = source.data if source.data == BUILT_IN_NAME else _name(source.data)
    sizes, digests = inspect([(path,) for path, _ in found])
    return Pairs(name, "photographs", ids, sizes, digests, read, tuple(notes))


def _dark_pictures(source: Source) -> Pairs:
    """All pictures of a folder; of a folder of pairs, the dark ones."""
    notes: list[str] = []
    found = _dark_files(source.data, notes.append)
    sizes, digests = inspect([(path,) for path, _ in found])
    small = [
        f"{path}: {size_text(size)}, too small for NIQE: it needs two patches of "
        f"{niqe.PATCH}x{niqe.PATCH}, as {2 * niqe.PATCH}x{niqe.PATCH} has"
        for (path, _), size in zip(found, sizes, strict=True)
        if not niqe.fits(*size)
    ]
    if small:
        raise DataError("\n  ".join([f"{len(small)} picture(s) without a score", *small]))

    def read(i: int) -> tuple[np.ndarray, None]:
        return read_eight_bits(found[i][0]), None

    ids = _ids(source.data, found)
    return Pairs(_name(source.data), "dark", ids, sizes, digests, read, tuple(notes))


def _dark_files(data: str, tell: Callable[[str], None]) -> Found:
    seen = survey(data)
    if seen.sets:
        chosen = choose(data, seen, ("test", "val"))
        if chosen.low == chosen.gt:
            return [(low, Path(low.name)) for _, low, _ in chosen.match(tell)]
        return find_photos([chosen.low], tell=tell)
    parts = [(path, role_of(path.name)) for group in seen.unclear for path in group]
    low = [path for path, said in parts if said and said[1] == "low" and path.is_dir()]
    return find_photos(low or [local(data)], tell=tell)


def inspect(
    examples: Sequence[tuple[Path, ...]],
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Sizes and digests of the files of each example; DataError names all that cannot be used."""
    sizes, digests, problems = [], [], []
    for paths in examples:
        digest, shapes = hashlib.blake2b(digest_size=16), []
        stop_if_asked()
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


def _name(data: str) -> str:
    """A folder's, without its path."""
    return local(data).resolve().name


def _ids(data: str, found: Found) -> tuple[str, ...]:
    """Where several photographs have one name, each keeps its suffix."""
    ids = tuple(name.as_posix() for name in distinct_names(found))
    if twice := [name for name, count in collections.Counter(ids).items() if count > 1]:
        raise DataError(f"{data}: more than one photograph called {', '.join(twice)}; rename one")
    return ids
