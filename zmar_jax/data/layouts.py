"""The benchmarks as users have them on disk: finds the folders, pairs and checks the files."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import pairing_key
from zmar_jax.data.frames import NPY_SIZE, picture_size
from zmar_jax.files.places import local
from zmar_jax.imaging.images import SUFFIXES, ImageError, Step, size_text

_DEPTH = 2
_SHOWN = 40

PublishedSplit = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """Two files of one scene. `id` is unique within its split: `00690`, `pair1/0001`."""

    id: str
    split: PublishedSplit
    low: Path
    gt: Path


@dataclass(frozen=True)
class FoundBenchmark:
    """A benchmark found in a folder: its pairs, sorted by split and id, and what is wrong so far.

    problems: `path: reason` of each file without a partner, of the wrong kind, or twice there.
    """

    name: str
    root: Path
    layout: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Layout:
    """Folders below a root, as (split, low, gt); without a split the scenes' names decide it."""

    folders: tuple[tuple[PublishedSplit | None, str, str], ...]
    files: str

    def __str__(self) -> str:
        return ", ".join(f"{low} and {gt}" for _, low, gt in self.folders) + f" with {self.files}"


@dataclass(frozen=True)
class _Benchmark:
    layouts: tuple[_Layout, ...]
    suffix: str
    published: dict[PublishedSplit, int] = field(default_factory=dict)
    test_scenes: tuple[str, ...] = ()


def _lol(train: str, test: str, low: str, gt: str, files: str = "NAME.png in both") -> _Layout:
    return _Layout(
        (("train", f"{train}/{low}", f"{train}/{gt}"), ("test", f"{test}/{low}", f"{test}/{gt}")),
        files,
    )


def _sdsd(folder: str, scene: str, test_scenes: Sequence[str]) -> _Benchmark:
    layout = _Layout(((None, f"{folder}/input", f"{folder}/GT"),), f"{scene}/0001.npy in both")
    return _Benchmark((layout,), ".npy", test_scenes=tuple(test_scenes))


_OUTDOOR = "0898 0906 0928 0975 0997 1001 1003 1026 1030 1032"
_BENCHMARKS = {
    "lol_v1": _Benchmark(
        (
            _lol("our485", "eval15", "low", "high"),
            _lol("Train", "Test", "input", "target"),
        ),
        ".png",
        {"train": 485, "test": 15},
    ),
    "lol_v2_real": _Benchmark(
        (
            _lol(
                *("Real_captured/Train", "Real_captured/Test", "Low", "Normal"),
                "lowNUMBER.png and normalNUMBER.png, or the same name",
            ),
        ),
        ".png",
        {"train": 689, "test": 100},
    ),
    "lol_v2_synthetic": _Benchmark(
        (_lol("Synthetic/Train", "Synthetic/Test", "Low", "Normal"),),
        ".png",
        {"train": 900, "test": 100},
    ),
    "sdsd_indoor": _sdsd("indoor_static_np", "pair1", [f"pair{n}" for n in (1, 4, 9, 11, 19, 21)]),
    "sdsd_outdoor": _sdsd("outdoor_static_np", "MVI_0898", [f"MVI_{n}" for n in _OUTDOOR.split()]),
    "sid": _Benchmark(
        (
            _Layout(
                ((None, "short_sid2", "long_sid2"),),
                "00001/00001_00_0.04s.npy and 00001/*.npy",
            ),
        ),
        ".npy",
        {"train": 2099, "test": 598},
    ),
}


def find_source(name: str, folder: str | Path) -> FoundBenchmark:
    """Finds the benchmark `name` in `folder`, or up to two folders below it, and pairs its files.

    Names of folders match in any case. Files are paired by stem, in any case and without a leading
    low, normal or high; hidden files and those that are no pictures are passed over.

    Raises DataError for an unknown name, and unless exactly one folder has one of the public
    layouts; the message shows the layouts and what was found instead.
    """
    if name not in _BENCHMARKS:
        raise DataError(f"{name!r} is no benchmark; expected one of {', '.join(_BENCHMARKS)}")
    folder = local(folder).absolute()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds {name}")
    try:
        found = _find_layouts(name, folder)
        if len(found) != 1:
            raise DataError(_not_one(name, folder, [root for root, *_ in found]))
        ((root, layout, folders),) = found
        problems: list[str] = []
        pairs = [
            pair for split, low, gt in folders for pair in _pairs(name, split, low, gt, problems)
        ]
    except OSError as e:
        raise DataError(f"{e.filename or folder}: cannot be read ({e.strerror})") from e
    missing = {"train", "test"} - {pair.split for pair in pairs}
    problems += [f"{root}: no pairs to {split}" for split in sorted(missing)]
    pairs.sort(key=lambda pair: (pair.split == "test", pair.id))
    return FoundBenchmark(name, root, str(layout), tuple(pairs), tuple(problems))


def check_source(
    source: FoundBenchmark, crop: int, step: Step = lambda low, gt, error: None
) -> None:
    """Reads every file of `source` and raises one DataError that lists all that is wrong.

    Wrong is: what `find_source` noted; an image that cannot be read, has other than 3 channels
    or is not 8 bits deep (npy: uint8 or float within 0-255); a low image of another size than its
    ground truth; an image, at the size it is prepared in, smaller than crop x crop pixels.
    """
    problems = list(source.problems)
    if _BENCHMARKS[source.name].suffix == ".npy" and crop > min(NPY_SIZE):
        problems.append(
            f"{source.root}: prepared at {size_text(NPY_SIZE)}, smaller than the crop {crop}"
        )
    sizes: dict[Path, tuple[int, int] | None] = {}
    for pair in source.pairs:
        for path in {pair.low: None, pair.gt: None}:
            if path not in sizes:  # a ground truth may belong to many
                sizes[path] = _size_or_problem(path, path == pair.gt, crop, problems)
        low, gt = sizes[pair.low], sizes[pair.gt]
        if low and gt and low != gt:
            problems.append(f"{pair.low}: {size_text(low)}, but {pair.gt} is {size_text(gt)}")
        if re.search("[\udc80-\udcff]", pair.id):  # bytes of other encodings
            problems.append(f"{pair.low}: its name is not UTF-8; rename it")
        step(pair.low, pair.gt, None)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise DataError("\n  ".join([f"{source.root}: {count}; nothing was written", *problems]))


def count_warnings(source: FoundBenchmark) -> list[str]:
    """How `source` differs from the published set: counts, and scenes that are tested on."""
    benchmark = _BENCHMARKS[source.name]
    warnings = []
    for split, published in benchmark.published.items():
        count = sum(pair.split == split for pair in source.pairs)
        if count != published:
            warnings.append(
                f"{source.name}: {count} pairs to {split}, the published set has {published}"
            )
    scenes = {pair.id.partition("/")[0].casefold() for pair in source.pairs}
    absent = [scene for scene in benchmark.test_scenes if scene.casefold() not in scenes]
    if absent:
        warnings.append(f"{source.name}: published test scenes are missing: {', '.join(absent)}")
    return warnings


def _size_or_problem(
    path: Path, is_gt: bool, crop: int, problems: list[str]
) -> tuple[int, int] | None:
    try:
        size = picture_size(path, is_gt)
    except (DataError, ImageError) as e:
        problems.append(str(e))
        return None
    if path.suffix.lower() == ".png" and min(size) < crop:
        problems.append(f"{path}: {size_text(size)}, smaller than the crop {crop}x{crop}")
    return size


def _find_layouts(
    name: str, folder: Path
) -> list[tuple[Path, _Layout, list[tuple[PublishedSplit | None, Path, Path]]]]:
    found = {}
    for layout in _BENCHMARKS[name].layouts:
        roots = list(_folders_below(folder, _DEPTH))
        if folder.name.casefold() == layout.folders[0][1].partition("/")[0].casefold():
            roots.append(folder.parent)
        for root in roots:
            resolved = [
                (split, _resolve(root, low), _resolve(root, gt))
                for split, low, gt in layout.folders
            ]
            folders = [(split, low, gt) for split, low, gt in resolved if low and gt]
            if len(folders) == len(resolved):
                found.setdefault(folders[0][1].resolve(), (root, layout, folders))
    return list(found.values())


def _not_one(name: str, folder: Path, roots: list[Path]) -> str:
    if roots:
        return f"{folder}: holds {name} more than once; name one of {', '.join(map(str, roots))}"
    lines = [f"{folder}: no {name} in it; expected, there or up to {_DEPTH} folders below,"]
    lines += [f"  {layout}" for layout in _BENCHMARKS[name].layouts]
    below = [path for path in _folders_below(folder, _DEPTH) if path != folder]
    files = [path.name for path in _visible(folder, os.DirEntry.is_file)]
    entries = [f"{path.relative_to(folder)}/" for path in below] + files
    more = [f"and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return "\n".join([*lines, f"found {', '.join(entries[:_SHOWN] + more) or 'nothing'}"])


def _pairs(
    name: str, split: PublishedSplit | None, low: Path, gt: Path, problems: list[str]
) -> Iterator[Pair]:
    suffix = _BENCHMARKS[name].suffix
    if split:
        for key, a, b in _partners(low, gt, _files(suffix, problems), problems):
            yield Pair(key, split, a, b)
        return
    for _, low_scene, gt_scene in _partners(low, gt, _scenes, problems):
        scene_split = _split_of(name, low_scene.name)
        if not scene_split:
            problems.append(f"{low_scene}: its name tells no split; expected 0, 1 or 2 first")
            continue
        files = _files(suffix, problems)
        if name == "sid":
            pairs = _exposures(low_scene, gt_scene, files, problems)
        else:
            pairs = _partners(low_scene, gt_scene, files, problems)
        for _, a, b in pairs:
            yield Pair(f"{low_scene.name}/{a.stem}", scene_split, a, b)


def _split_of(name: str, scene: str) -> PublishedSplit | None:
    """By the published lists; `NAME_2...` goes with `NAME`."""
    if name == "sid":
        splits: dict[str, PublishedSplit] = {"0": "train", "1": "test", "2": "train"}
        return splits.get(scene[:1])
    tested = (test.casefold() for test in _BENCHMARKS[name].test_scenes)
    scene = scene.casefold()
    return "test" if any(scene == t or scene.startswith(f"{t}_2") for t in tested) else "train"


def _partners(
    low: Path, gt: Path, entries: Callable[[Path], list[Path]], problems: list[str]
) -> Iterator[tuple[str, Path, Path]]:
    """The entries of both folders that have the same normalised stem; the others are problems."""
    lows, gts = (_keyed(entries(folder), problems) for folder in (low, gt))
    for key in sorted(lows.keys() | gts.keys()):
        if key in lows and key in gts:
            yield key, lows[key], gts[key]
        elif key in lows:
            problems.append(f"{lows[key]}: no partner in {gt}")
        else:
            problems.append(f"{gts[key]}: no partner in {low}")


def _exposures(
    short: Path, long: Path, entries: Callable[[Path], list[Path]], problems: list[str]
) -> Iterator[tuple[str, Path, Path]]:
    """Every short exposure, with the first of the long ones."""
    lows, gts = entries(short), entries(long)
    if not lows or not gts:
        problems.append(f"{long if lows else short}: no exposure in it")
        return
    yield from ((low.stem, low, gts[0]) for low in lows)


def _keyed(paths: Sequence[Path], problems: list[str]) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for path in paths:
        name = path.name if path.is_dir() else path.stem
        key = pairing_key(name)
        if key in keyed:
            problems.append(f"{path}: pairs as {key}, and so does {keyed[key]}")
        keyed.setdefault(key, path)
    return keyed


def _files(suffix: str, problems: list[str]) -> Callable[[Path], list[Path]]:
    """Lists the files with `suffix` in a folder; other pictures there are problems."""

    def files(folder: Path) -> list[Path]:
        paths = _visible(folder, os.DirEntry.is_file)
        for path in paths:
            if path.suffix.lower() in {*SUFFIXES, ".npy"} - {suffix}:
                problems.append(f"{path}: expected a {suffix} file")
        return [path for path in paths if path.suffix.lower() == suffix]

    return files


def _scenes(folder: Path) -> list[Path]:
    return _visible(folder, os.DirEntry.is_dir)


def _visible(folder: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if not e.name.startswith(".") and kind(e))


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for path in _scenes(folder):
            yield from _folders_below(path, depth - 1)


def _resolve(root: Path, relative: str) -> Path | None:
    """The folder `relative` below `root`, in any case; the exact case comes first."""
    for part in relative.split("/"):
        names = [path.name for path in _scenes(root) if path.name.casefold() == part.casefold()]
        if not names:
            return None
        root /= part if part in names else names[0]
    return root
