"""Where the pictures that are made of others are to be written."""

import collections
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from zmar_jax.imaging.contents import RAW_SUFFIXES
from zmar_jax.imaging.errors import ImageError, image_error, image_errors
from zmar_jax.imaging.images import SUFFIXES, WRITTEN

Found = Sequence[tuple[Path, Path]]
"""Files and their names relative to a folder, as `images.find_photos` returns them."""
_NAMED = 5
"""So many of what is wrong are named in a message."""


def output_paths(
    found: Found,
    out_dir: Path,
    suffix: str = ".png",
    beside: Callable[[Path], Sequence[Path]] = lambda target: (),
) -> list[tuple[Path, Path]]:
    """Where each find is to be written: [(source, out_dir / `bare_name` with `suffix`)].

    Where several would get one name, each keeps its own suffix before the new one: `a.jpg.png`.

    Args:
      beside: what else is written for a target.

    Raises:
      ImageError: before anything is written, when two would still get the same target, when a
        target is one of the sources (also through a link), or for an unknown suffix.
    """
    if suffix.lower() not in WRITTEN:
        raise ImageError(f"cannot write {suffix!r} files: choose one of {' '.join(WRITTEN)}")
    paths = [
        (source, Path(out_dir) / name.with_name(name.name + suffix))
        for (source, _), name in zip(found, distinct_names(found), strict=True)
    ]
    _check_apart(paths, beside)
    return paths


def output_file(
    found: Found, out: Path, beside: Callable[[Path], Sequence[Path]] = lambda target: ()
) -> list[tuple[Path, Path]]:
    """What `output_paths` returns, for an output that `names_file`: the only find goes there.

    Raises:
      ImageError: several finds, or a suffix of which nothing is written, too.
    """
    if out.suffix.lower() not in WRITTEN:
        advice = f"end its name in one of {' '.join(WRITTEN)}, or make a folder of that name first"
        raise image_error(out, "no kind of picture that is written", advice)
    if len(found) != 1:
        raise image_error(out, f"one file for {len(found)} pictures", "name a folder")
    paths = [(found[0][0], out)]
    _check_apart(paths, beside)
    return paths


def names_file(out: Path) -> bool:
    """Whether an output is named like a file, `result.png`; a folder that exists is a folder."""
    return not out.is_dir() and bool(re.fullmatch(r"\.[A-Za-z]\w{0,4}", out.suffix))


def distinct_names(found: Found) -> list[Path]:
    """The `bare_name` of each; with its suffix where several would get the same."""
    bare = [bare_name(name) for _, name in found]
    wanted = collections.Counter(bare)
    return [
        name if wanted[name] == 1 else whole for name, (_, whole) in zip(bare, found, strict=True)
    ]


def bare_name(name: Path) -> Path:
    """Without the suffix of a picture; what else a name ends in, as IMG.0001, is part of it."""
    return name.with_suffix("") if name.suffix.lower() in (*SUFFIXES, *RAW_SUFFIXES) else name


def _check_apart(
    paths: Sequence[tuple[Path, Path]], beside: Callable[[Path], Sequence[Path]]
) -> None:
    sources = {_identity(source): source for source, _ in paths}
    taken: dict[str, Path] = {}
    problems = []
    for source, target in paths:
        for file in (target, *beside(target)):
            first = taken.setdefault(_place(file), source)
            if first != source:
                problems.append(f"{file}: wanted by {first} and {source}: rename one of them")
            elif os.path.exists(file) and (victim := sources.get(_identity(file))):
                problems.append(
                    f"{file}: would overwrite the input {victim}: choose another folder or name"
                )
    if problems:
        more = len(problems) - _NAMED
        raise ImageError("; ".join(problems[:_NAMED]) + (f"; and {more} more" * (more > 0)))


def _place(target: Path) -> str:
    return os.path.join(os.path.realpath(target.parent), target.name)


def _identity(path: Path) -> tuple[int, int] | None:
    with image_errors(path, "read"), contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None
