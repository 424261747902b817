"""Decoded pixels in one memory-mapped file, from which a crop reads only its own rows.

Decoding a 600x400 PNG pair takes 15 ms, reading a crop of its decoded pixels 0.1 ms. The file
takes 3 bytes per pixel on disk (1.44 MB for such a pair) and no memory beyond the system's cache.
"""

import contextlib
import copy
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import Tell
from zmar_jax.data.hashing import name_digest
from zmar_jax.data.sources import Pictures, Progress, Source
from zmar_jax.files.errors import errors_as
from zmar_jax.files.places import kept
from zmar_jax.files.replacing import whole_folder, write_whole
from zmar_jax.imaging.images import size_text

_PARTIAL = "-partial"
"""At the end of a folder's name: pictures that cannot be read may be left out."""
MOST = 50_000
"""Pictures of which all are decoded before the first step: of more that takes too long."""


class PixelCache:
    """A `Source` whose pictures are decoded; a reading copies nothing.

    Cheap to pickle: the file is mapped when it is first read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.key = folder.name.removesuffix(_PARTIAL)
        """Changes with what the files hold, and with which of them are left out."""
        try:
            index = json.loads((folder / "index.json").read_text())
            self.ids: list[str] = index["ids"]
            self.sizes: list[tuple[int, int]] = [(h, w) for h, w in index["sizes"]]
            self.roles: tuple[str, ...] = tuple(index["roles"])
            """("gt",), or ("low", "gt")."""
            self.left_out: list[str] = index.get("left_out", [])
            """Pictures that cannot be read, and why, in one line each."""
            pixels = [3 * h * w * len(self.roles) for h, w in self.sizes]
            self._starts = [0, *np.cumsum(pixels).tolist()]
            if (folder / "pixels.bin").stat().st_size != self._starts[-1]:
                raise ValueError("pixels.bin has another size")
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"{folder}: decoded pixels are damaged ({e}); remove this folder"
            ) from e

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        return np.memmap(self.folder / "pixels.bin", np.uint8, "r")

    def only(self, indices: Sequence[int]) -> "PixelCache":
        """A cache of these pictures alone, with a key of its own."""
        chosen = copy.copy(self)
        chosen.ids = [self.ids[i] for i in indices]
        chosen.sizes = [self.sizes[i] for i in indices]
        chosen._starts = [self._starts[i] for i in indices]
        digest = name_digest("\n".join(chosen.ids), 8).hex()
        chosen.key = f"{self.folder.name.removesuffix(_PARTIAL)}-{digest}"
        return chosen

    def read(self, i: int) -> tuple[np.ndarray, ...]:
        """Views of the file."""
        shape = (len(self.roles), *self.sizes[i], 3)
        start = self._starts[i]
        return tuple(self._pixels[start : start + math.prod(shape)].reshape(shape))


def open_source(
    pictures: Pictures,
    folder: str | Path,
    smallest: int,
    done: Progress,
    leave_out: Tell | None,
    most: float,
    tell: Tell,
) -> Source:
    """The pictures to cut crops of: decoded once, where that fits, else at each reading.

    Args:
      smallest, leave_out: as of `open_cache`.
      most: GiB that decoded pixels may take. Files in folders are always decoded.
      tell: called with one line where pictures are not decoded once.

    Raises:
      DataError: as `open_cache`; of what is not decoded once, pictures that are too small.
    """
    if pictures.sizes is None:
        return open_cache(pictures, folder, smallest, done, leave_out)
    sizes = np.asarray(pictures.sizes, np.int64).reshape(-1, 2)
    needed = 3 * len(pictures.roles) * int(np.prod(sizes, axis=1).sum())
    if not (why := _too_large(needed, len(pictures), _target(pictures, folder), most)):
        return open_cache(pictures, folder, smallest, done, leave_out)
    small = np.flatnonzero(sizes.min(1) < smallest)
    if len(small):
        names = [f"{pictures.ids[i]} ({size_text(tuple(sizes[i]))})" for i in small[:20]]
        raise DataError(
            f"{pictures.name}: {len(small)} picture(s) smaller than {smallest}x{smallest} pixels; "
            f"prepare the set again with --crop {smallest}, or choose a smaller data.crop: "
            f"{', '.join(names)}"
        )
    tell(f"{pictures.name}: {len(pictures)} pictures are decoded anew for each crop: {why}")
    return cast(Source, pictures)


def _target(pictures: Pictures, folder: str | Path) -> Path:
    return kept(folder) / "cache" / pictures.key


def _too_large(needed: int, count: int, target: Path, most: float) -> str:
    """Why pixels of so many bytes are not to be kept; "" if they are."""
    size = f"decoded they take {needed / 2**30:.1f} GiB"
    if needed > most * 2**30:
        return f"{size}, more than data.cache_gib={most:g}"
    if target.exists():
        return ""
    if count > MOST:
        return f"to decode more than {MOST} before the first step would take long"
    there = next(path for path in target.absolute().parents if path.exists())
    if needed > (free := shutil.disk_usage(there).free):
        return f"{size}, and {there} has {free / 2**30:.1f} free"
    return ""


def open_cache(
    pictures: Pictures,
    folder: str | Path,
    smallest: int,
    done: Progress,
    leave_out: Tell | None = None,
) -> PixelCache:
    """The cache of `pictures` below `folder`; the first time, decodes all of them.

    Args:
      smallest: least height and width; a smaller picture is an error.
      leave_out: where it is given, pictures that cannot be read or are too small are no errors: it
        is called with one line that names them, at each opening.

    Raises:
      DataError: pictures that cannot be read or are too small (all of them are named), none that is
        left, or a cache that is damaged or cannot be written.
    """
    target = _target(pictures, folder)
    if leave_out and not target.exists():
        target = target.with_name(f"{target.name}{_PARTIAL}")
    if not target.exists():
        with _whole_folder(target) as temporary:
            _decode_all(pictures, temporary, done, leave_out is not None)
    cache = PixelCache(target)
    large = [i for i, size in enumerate(cache.sizes) if min(size) >= smallest]
    small = [
        f"{id_} ({size_text(size)})"
        for id_, size in zip(cache.ids, cache.sizes, strict=True)
        if min(size) < smallest
    ]
    if not leave_out and small:
        raise DataError(
            f"{pictures.name}: {len(small)} picture(s) smaller than {smallest}x{smallest} pixels; "
            "remove them, choose a smaller data.crop, or leave them out with "
            f"data.skip_broken=true: {', '.join(small)}"
        )
    reasons = cache.left_out + [f"{each}, smaller than {smallest}x{smallest}" for each in small]
    if leave_out and reasons:
        again = f"; to read them once more remove {target}" if cache.left_out else ""
        leave_out(
            f"{pictures.name}: {len(reasons)} picture(s) left out: {'; '.join(reasons)}{again}"
        )
    if not large:
        raise DataError(f"{pictures.name}: no picture is left that can be used; add some")
    return cache.only(large) if reasons else cache


def _decode_all(pictures: Pictures, folder: Path, done: Progress, skip: bool) -> None:
    count, ids, sizes, problems = len(pictures), [], [], []
    with (folder / "pixels.bin").open("xb") as file:
        for i in range(count):
            try:
                example = pictures.read(i)
            except ValueError as e:
                problems.append(str(e))
                continue
            for pixels in example:
                file.write(np.ascontiguousarray(pixels).data)
            ids.append(pictures.ids[i])
            sizes.append(example[0].shape[:2])
            done("decoding pictures, once", i + 1, count)
        file.flush()
        os.fsync(file.fileno())
    if problems and not (skip and ids):
        advice = "mend or remove them, or leave them out with data.skip_broken=true"
        if skip:
            advice = "no picture is left that can be used; mend or add some"
        raise DataError(
            f"{len(problems)} picture(s) cannot be read: {'; '.join(problems)}; {advice}"
        )
    index = {"ids": ids, "sizes": sizes, "roles": pictures.roles, "left_out": problems}
    write_whole(folder / "index.json", json.dumps(index))


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `target` at the end of a block that raised nothing."""

    def problem(e: Any) -> str:
        return (
            f"{target}: decoded pixels cannot be cached ({e.strerror}); free some space or choose "
            "another data.data_dir"
        )

    # another host may be first, with the same pixels
    with errors_as(DataError, problem, OSError), whole_folder(target, keep=True) as folder:
        yield folder
