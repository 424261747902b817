"""A folder of this machine whose files become the objects below a URL.

A bucket cannot rename, append or write half a file, and programs that work on folders do all three.
So they work in a folder of this machine, and what is finished is put into the bucket: every object
by one request, in the order in which the files were finished. Whatever a reader of the folder may
rely on, as a list that names only pictures that are there, holds for the bucket, too, whenever the
machine goes.
"""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from zmar_jax.files.places import Bucket, Place


class Mirror:
    """`folder`, and the objects below `url` that are to be the same."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.bucket = folder, Bucket(url)
        self._known: dict[str, tuple[int, int]] = {}

    def pull(self, wanted: Callable[[str], bool] = lambda name: True, below: str = "") -> list[str]:
        """Fetches the objects below a name that are `wanted` by their names; returns all names."""
        names = self.bucket.names(below)
        for name in filter(wanted, names):
            target = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # somebody removes it just now
                self.bucket.fetch(name, target)
                self._known[name] = _state(target)
        return list(names)

    def push(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Puts what has changed since, oldest first; hidden files and folders stay here.

        Raises:
          PlaceError: one could not be put; it and those after it are tried again next time.
        """
        changed = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if any(part.startswith(".") for part in name.parts) or not wanted(name.as_posix()):
                continue
            with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
                if path.is_file() and (state := _state(path)) != self._known.get(name.as_posix()):
                    changed.append((state, name.as_posix()))
        for state, name in sorted(changed):
            with contextlib.suppress(FileNotFoundError):
                self.bucket.put(self.folder / name, name)
                self._known[name] = state


def _state(path: Path) -> tuple[int, int]:
    """When a file was written and how long it is, in an order that `push` sorts by."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder of this name that goes at the end, where TMPDIR says."""
    folder = Path(tempfile.mkdtemp(prefix="zmar-jax-"))
    try:
        (folder / name).mkdir()
        yield folder / name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def named(folder: Path, url: str) -> Iterator[None]:
    """Errors for users that name the folder name the URL instead, which is what users gave."""
    try:
        yield
    except ValueError as e:
        text = str(e).replace(str(folder), url)
        if text == str(e) or len(e.args) != 1:  # the last is no error of this project
            raise
        raise type(e)(text) from e


@contextlib.contextmanager
def fetched(place: Place, missing: Callable[[str], Exception]) -> Iterator[Path]:
    """A place to read from: itself, or what lies at the URL, copied to a folder that goes.

    Args:
      missing: makes the error to raise where nothing lies at the URL.
    """
    if isinstance(place, Path):
        yield place
        return
    mirror_name = place.rpartition("/")[2]
    with scratch(mirror_name) as folder, named(folder, place):
        mirror = Mirror(folder, place)
        if mirror.bucket.is_object():
            folder.rmdir()
            mirror.bucket.fetch("", folder)
        elif not mirror.pull():
            raise missing(place)
        yield folder


@dataclasses.dataclass(frozen=True)
class Published:
    """What is written at `path` is put where it belongs at the end, and when `put` is called.

    get: fetches what others have put there since; forget: removes files of these names there.
    """

    path: Path
    put: Callable[[], None] = lambda: None
    get: Callable[[], object] = lambda: None
    forget: Callable[..., None] = lambda *names: None


@contextlib.contextmanager
def published(place: Place, last: str = "") -> Iterator[Published]:
    """A place to write to: itself; or for a URL a path to write a file or folder at.

    Args:
      last: the file of a folder without which it counts as nothing. A folder that has it replaces
        what lies at the URL: it goes first, and comes last.
    """
    if isinstance(place, Path):
        yield Published(place)
        return
    with scratch(place.rpartition("/")[2]) as path, named(path, place):
        path.rmdir()
        mirror = Mirror(path, place)

        def put() -> None:
            if path.is_file():
                mirror.bucket.put(path, "")
            elif last:
                mirror.bucket.remove(last, *mirror.bucket.names())
                mirror.push(lambda name: name != last)
                mirror.push()
            else:
                mirror.push()

        yield Published(path, (lambda: None) if last else put)
        put()
