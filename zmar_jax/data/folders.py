"""What a user's folder holds: pairs of dark pictures and their ground truths, or photographs.

Two subfolders of one folder are pairs by their names: one says low, the other ground truth, and
else they are called the same (`low` and `high`, `LQ` and `HQ`, `1_low` and `1_gt`). So are two
files of one folder (`7_low.png`, `7_gt.png`). A folder may hold several such sets; names of folders
above tell which is to train and which to test.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from zmar_jax.data.errors import DataError
from zmar_jax.files.places import local
from zmar_jax.imaging.images import SUFFIXES, find_photos
from zmar_jax.imaging.outputs import bare_name

Role = Literal["low", "gt"]
Part = Literal["train", "val", "test"]
Found = Sequence[tuple[Path, Path]]
"""Files and their names relative to a folder, as `images.find_photos` returns them."""
Tell = Callable[[str], None]

ROLES: dict[Role, tuple[str, ...]] = {
    "low": ("low", "input", "lq", "dark", "lowlight"),
    "gt": ("gt", "high", "normal", "target", "hq", "bright", "groundtruth"),
}
"""Words in names, in any case, of dark pictures and of ground truths."""
PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training", "our485"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "eval", "eval15", "evaluation"),
}
"""Words in names of folders, in any case."""
_WORDS: dict[str, Role] = {word: role for role, words in ROLES.items() for word in words}
_ANY = "|".join(_WORDS)
_NAMED = re.compile(
    rf"(?P<only>{_ANY})|(?P<last>.+)[-_ ](?:{_ANY})|(?:{_ANY})(?:[-_ ]|(?=\d))(?P<first>.+)"
)


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Two folders whose files pair by name; or one twice, in which names of files tell.

    place: relative to the folder that was searched; "." where it is that folder's own.
    """

    place: str
    low: Path
    gt: Path

    @property
    def part(self) -> Part | None:
        words = re.split(r"[^a-z0-9]+", self.place.casefold())
        return next((part for part, known in PARTS.items() if set(words) & set(known)), None)

    def match(self, tell: Tell = lambda text: None) -> list[tuple[str, Path, Path]]:
        """(id, low, gt) as `match`; `tell` as of `images.find_photos`."""
        if self.low != self.gt:
            return match(find_photos([self.low], tell=tell), find_photos([self.gt], tell=tell))
        found = [f for f in find_photos([self.low], tell=tell) if len(f[1].parts) == 1]
        roles = [(role_of(name.stem), (path, name)) for path, name in found]
        if other := [str(path) for said, (path, _) in roles if said is None]:
            raise DataError(
                f"{self.low}: files that are called neither low nor ground truth, beside some that "
                f"are: {', '.join(other[:20])}; put them elsewhere"
            )
        lows, gts = ([f for said, f in roles if said and said[1] == r] for r in ROLES)
        return match(lows, gts)


@dataclasses.dataclass(frozen=True)
class Survey:
    """All sets of pairs below a folder, and what may be one.

    unclear: groups of folders, or of kinds of names of files, as FOLDER/*_lr.
    """

    sets: tuple[PairSet, ...] = ()
    unclear: tuple[tuple[Path, ...], ...] = ()


def role_of(name: str) -> tuple[str, Role] | None:
    """What a name says beside its role, and the role; None where it has none.

    `train_low` and `Low-train` are ("train", "low"), `HQ` is ("", "gt").
    """
    name = name.casefold()
    found = _NAMED.fullmatch(name)
    if not found:
        return None
    rest = found["last"] or found["first"] or ""
    word = name.removeprefix(rest) if found["last"] else name.removesuffix(rest)
    return rest, _WORDS[word.strip("-_ ")]


def survey(folder: str | Path) -> Survey:
    """Searches `folder` and all folders below, but hidden ones.

    Raises:
      DataError: there is no such folder, or it cannot be read.
    """
    root = local(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder")
    try:
        found = list(_sets_below(root, root, set()))
    except OSError as e:
        raise DataError(f"{e.filename or folder}: cannot be read ({e.strerror})") from e
    sets = tuple(each for each in found if isinstance(each, PairSet))
    return Survey(sets, tuple(each for each in found if not isinstance(each, PairSet)))


def choose(folder: str | Path, found: Survey, wanted: Sequence[Part]) -> PairSet:
    """The only set, or else the only one of the first part in `wanted` that is there.

    Raises:
      DataError: there is none, or there are several.
    """
    sets = found.sets
    if not sets:
        raise DataError(f"{folder}: {_no_pairs(folder, found)}")
    if len(sets) == 1:
        return sets[0]
    for part in wanted:
        of_part = [each for each in sets if each.part == part]
        if len(of_part) == 1:
            return of_part[0]
        if of_part:
            break
    raise DataError(
        f"{folder}: holds several sets of pairs, and their names do not tell which is to take; "
        f"name the folder of one of them: {_places(sets)}"
    )


def refuse_pairs(folder: str | Path, found: Survey, advice: str) -> None:
    """Raises DataError where a folder that is to hold clean photographs has pairs, or may have.

    Args:
      found: its survey; advice: what the user may say instead.
    """
    path, problem = local(folder), ""
    if found.sets:
        problem = f"holds pairs of dark pictures and ground truths (in {_places(found.sets)})"
    elif found.unclear:
        problem = f"may hold pairs, but {_no_pairs(folder, found)}"
    elif beside := _other_half(path):
        problem = f"lies beside {beside.name}, so it holds the dark pictures of pairs"
    if problem:
        raise DataError(f"{folder}: {problem}; {advice}")


def _places(sets: Sequence[PairSet]) -> str:
    return ", ".join([each.place for each in sets][:20] + ["..."] * (len(sets) > 20))


def _no_pairs(folder: str | Path, found: Survey) -> str:
    root = local(folder)
    there = [str(path.relative_to(root)) for group in found.unclear for path in group]
    return (
        f"expected one subfolder called {_one_of('low')} and one called {_one_of('gt')}, found "
        f"{', '.join(there[:20]) or 'none of them'}"
    )


def _other_half(folder: Path) -> Path | None:
    """The folder of ground truths beside one that is called dark."""
    folder = folder.resolve()
    said = role_of(folder.name)
    if not said or said[1] != "low":
        return None
    with contextlib.suppress(OSError):  # one may not be allowed to look there
        return next(
            (p for p in _folders(folder.parent) if role_of(p.name) == (said[0], "gt")), None
        )
    return None


def match(low: Found, gt: Found) -> list[tuple[str, Path, Path]]:
    """(id, low, gt) of the files that have the same name but for suffix, case, and a word of
    `ROLES` before or behind; sorted by id, the name of low without suffix.

    Raises:
      DataError: lists each file without a partner, and each name that is there twice.
    """
    problems: list[str] = []
    # a word that both names have is no role: the exposures 1_low.png and 1_high.png of two folders
    whole = {_whole(name) for _, name in low} & {_whole(name) for _, name in gt}
    lows, gts = _keyed(low, whole, problems), _keyed(gt, whole, problems)
    problems += [f"{lows[key][0]}: no partner" for key in lows.keys() - gts.keys()]
    problems += [f"{gts[key][0]}: no partner" for key in gts.keys() - lows.keys()]
    if problems:
        raise DataError("\n  ".join(["files that do not pair", *sorted(problems)]))
    pairs = [(id_of(name), path, gts[key][0]) for key, (path, name) in lows.items()]
    return sorted(pairs)


def pairing_key(stem: str) -> str:
    """What both files of a pair are called: their stem in lower case, without its role.

    `low00690` and `normal00690`, as of LOL-v2, are the same without anything between.
    """
    stem = stem.casefold()
    if (said := role_of(stem)) and said[0]:
        return said[0]
    return re.sub(r"^(low|normal|high)[-_]?(?=.)", "", stem)


def id_of(name: Path) -> str:
    """The name of a picture: relative to its folder, without suffix."""
    return bare_name(name).as_posix()


def _one_of(role: Role) -> str:
    *words, last = ROLES[role][:4]  # the others are in docs/data.md
    return f"{', '.join(words)} or {last}"


def _whole(name: Path) -> str:
    return (name.parent / name.stem.casefold()).as_posix()


def _keyed(found: Found, whole: set[str], problems: list[str]) -> dict[str, tuple[Path, Path]]:
    keyed: dict[str, tuple[Path, Path]] = {}
    for path, name in found:
        key = _whole(name)
        if key not in whole:
            key = (name.parent / pairing_key(name.stem)).as_posix()
        if key in keyed:
            problems.append(f"{path}: pairs as {key}, and so does {keyed[key][0]}")
        keyed.setdefault(key, (path, name))
    return keyed


def _sets_below(root: Path, folder: Path, seen: set[str]) -> Iterator[PairSet | tuple[Path, ...]]:
    """Sets of pairs, and groups of folders that may be one."""
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back
        return
    seen.add(real)
    below: list[Path] = _folders(folder)
    groups: dict[str, dict[Role, list[Path]]] = {}
    for path in below:
        if said := role_of(path.name):
            groups.setdefault(said[0], {"low": [], "gt": []})[said[1]].append(path)
    taken: list[Path] = []
    for rest, group in groups.items():
        lows, gts = group["low"], group["gt"]
        if len(lows) == len(gts) == 1:
            place = (folder.relative_to(root) / rest).as_posix()
            yield PairSet(place, lows[0], gts[0])
        elif (lows and gts) or not rest:
            yield (*lows, *gts)
        else:
            continue  # `high_noise` may be called so for any reason
        taken += [*lows, *gts]
    if _pairs_of_files(folder):
        yield PairSet(folder.relative_to(root).as_posix(), folder, folder)
    elif twins := _twin_names(folder):
        yield twins
    others = [path for path in below if path not in taken]
    if twins := _twins(others):
        yield twins
    for path in others:
        yield from _sets_below(root, path, seen)


def _pairs_of_files(folder: Path) -> bool:
    said = [found for stem in _stems(folder) if (found := role_of(stem))]
    names = [{name for name, role in said if role == r and name} for r in ROLES]
    return bool(names[0] & names[1])


def _twins(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Two folders that share most names of their pictures: `LR` and `HR`, `trainA` and `trainB`.

    Three or more folders that are called alike but for their numbers are scenes or days.
    """
    stems = {path: names for path in folders if (names := _stems(path))}
    times = collections.Counter(name for names in stems.values() for name in names)
    shared = {path: {n for n in names if times[n] > 1} for path, names in stems.items()}
    alike = {path: re.sub(r"\d+", "0", path.name.casefold()) for path in stems}
    series = {name for name, n in collections.Counter(alike.values()).items() if n > 2}
    for a, b in itertools.combinations([path for path, names in shared.items() if names], 2):
        if alike[a] == alike[b] and alike[a] in series:
            continue
        both = len(shared[a] & shared[b])
        if both > 1 and 2 * both > min(len(stems[a]), len(stems[b])):
            return a, b
    return ()


def _twin_names(folder: Path) -> tuple[Path, ...]:
    """Two kinds of names by which over half of the pictures of `folder` pair: `*_lr` and `*_hr`.

    A kind is a last word without digits, or any name at all, as of `1` and `1_hr`. First words are
    none: `cat_1` and `dog_1` are two pictures.
    """
    stems = _stems(folder)
    kinds: dict[str, set[str]] = {"*": set(stems)}
    for stem in stems:
        if last := re.fullmatch(r"(.+)([-_ ][^\W\d_]+)", stem):
            kinds.setdefault(f"*{last[2]}", set()).add(last[1])
    large = sorted(kind for kind, names in kinds.items() if 4 * len(names) > len(stems))
    for a, b in itertools.combinations(large, 2):
        both = len(kinds[a] & kinds[b])
        if both > 1 and 4 * both > len(stems):
            return folder / a, folder / b
    return ()


def _stems(folder: Path) -> frozenset[str]:
    """Names of the pictures that lie in `folder` itself."""
    with os.scandir(folder) as entries:
        names = [Path(e.name) for e in entries if not e.name.startswith(".")]
    return frozenset(name.stem.casefold() for name in names if name.suffix.lower() in SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if not e.name.startswith(".") and e.is_dir())
