"""Files and folders that are replaced: whoever looks sees the old one or the new one, whole.

All of the product is written by what is here. A write that fails or is interrupted leaves what was
there; of one that is killed, `put_back` brings it back.
"""

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ABANDONED = 3600
"""Seconds after which a folder that nobody wrote to is no process's work any more."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end of a block that raised nothing."""
    # Not tempfile: its files are private to the user, and the file would stay so.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_file(new: Path, target: Path) -> None:
    """The file `new`, on the same disk and written by another library, becomes `target`."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(new, target)


def write_whole(path: Path, text: str) -> None:
    """The text as `path`."""
    with whole_file(path) as file:
        # names of files need not be UTF-8: as the bytes that they are
        file.write(text.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def whole_folder(path: Path, keep: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` at the end of a block that raised nothing.

    Makes the folder that `path` is in. `keep`: as for `replace_folder`.
    """
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # a younger one may be another process's or host's, at work
        if time.time() - _written(abandoned) > _ABANDONED:
            shutil.rmtree(abandoned, ignore_errors=True)
    place = _temporary(path)
    new = place / "new"  # beside it there is room for what writes under yet another name first
    try:
        new.mkdir(parents=True)
        yield new
        replace_folder(new, path, keep)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def replace_folder(new: Path, target: Path, keep: bool = False) -> None:
    """The folder `new`, on the same disk, becomes `target`; a folder that was there is removed.

    That goes last: until `new` is in its place it stands beside it, and comes back where that
    fails. With `keep` it stays, and `new` too: another process was first, with the same.

    Raises:
      OSError: `target` is as it was.
    """
    try:
        try:
            _rename(new, target, keep)
        except OSError:
            # a reader may have put the old one back in between
            if keep or not os.path.lexists(target):
                raise
            _rename(new, target, keep)
    except BaseException as e:
        put_back(target)
        if not (keep and isinstance(e, OSError) and target.exists()):
            raise
    finally:
        if os.path.lexists(target):  # the old one or the new one: what is aside is of no more use
            with contextlib.suppress(OSError):
                _remove_aside(target)


def _rename(new: Path, target: Path, keep: bool) -> None:
    if os.path.lexists(target) and not keep:
        _remove_aside(target)  # of a process that was killed when all but this was done
        os.rename(target, _aside(target))
    os.rename(new, target)


def put_back(target: Path) -> None:
    """The folder that a process was replacing when it was killed, where `target` is missing.

    To be called before `target` is read, or found to be missing.

    Raises:
      OSError: there is one, and it cannot be moved; the error names both.
    """
    if not os.path.lexists(target) and os.path.lexists(_aside(target)):
        os.rename(_aside(target), target)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _temporary(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"


def _remove_aside(target: Path) -> None:
    aside, rubbish = _aside(target), _temporary(target)
    if os.path.lexists(aside):
        os.rename(aside, rubbish)  # half of it must not be put back
        if rubbish.is_symlink():
            rubbish.unlink()
        else:
            shutil.rmtree(rubbish, ignore_errors=True)


def _written(folder: Path) -> float:
    """When anything was last written in it; now, where it just went."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()
