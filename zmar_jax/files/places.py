"""Where files lie: on this machine, or in a bucket, as gs://BUCKET/NAME or s3://BUCKET/NAME.

A place is a `pathlib.Path`, or a URL as a `str`. Whatever a user gives goes through `place` or,
where only a file of this machine will do, through `local`: no URL becomes the name of a folder.

Buckets are reached through fsspec, with gcsfs and s3fs. It has what the others lack: an object that
is created only where none is (`create`), which the lock needs. etils.epath and universal_pathlib
stand on fsspec and hide that; epath also takes TensorFlow where that is installed.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

Place: TypeAlias = Path | str
"""A path on this machine, or a URL."""
CACHE_VARIABLE = "ZMAR_JAX_CACHE"
_KINDS = {
    "gs": ("gcsfs.core", "GCSFileSystem", "gcs"),
    "s3": ("s3fs.core", "S3FileSystem", "s3"),
}
"""fsspec's filesystem for each scheme, and the extra that installs it."""
# as a pathlib.Path a URL has one slash; a drive of Windows has one letter
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class PlaceError(ValueError):
    """A place that is not supported, or a bucket that cannot be read or written; in one line."""


def is_url(place: Place) -> bool:
    """Whether this is a URL, of whatever scheme."""
    return bool(_URL.match(str(place)))


def place(given: str | os.PathLike[str]) -> Place:
    """What a user gave, `~` expanded; a URL of a bucket without a slash at its end.

    Raises:
      PlaceError: a URL of another scheme, without a bucket, or in a `pathlib.Path`, which
        cannot hold one; or what reaches it is not installed.
    """
    text = os.fspath(given)
    if not is_url(text):
        return Path(os.path.expanduser(text))
    scheme, _, rest = text.partition("://")
    if not rest and isinstance(given, Path):
        raise PlaceError(f"{text}: a pathlib.Path cannot hold a URL; give it as a string")
    if scheme not in _KINDS:
        known = ", ".join(f"{kind}://" for kind in _KINDS)
        raise PlaceError(
            f"{text}: {scheme}:// is not supported, only {known} and paths of this machine are"
        )
    bucket, _, name = rest.rstrip("/").partition("/")
    if not bucket or not name:
        raise PlaceError(f"{text}: expected {scheme}://BUCKET/NAME")
    _check_installed(scheme, text)
    return f"{scheme}://{bucket}/{name}"


def local(given: str | os.PathLike[str]) -> Path:
    """What a user gave, `~` expanded, where only a path of this machine will do.

    Raises:
      PlaceError: it is a URL.
    """
    text = os.fspath(given)
    if is_url(text):
        raise PlaceError(f"{text}: is not read or written here; copy it to this machine first")
    return Path(os.path.expanduser(text))


def is_there(where: Place) -> bool:
    """Whether a file or a folder is there, or an object, or some below that name."""
    if isinstance(where, Path):
        return where.exists()
    bucket = Bucket(where)
    return bucket.is_object() or bool(bucket.names())


def cache_folder() -> Path:
    """Where programs and data are kept that can be made or fetched again: `$ZMAR_JAX_CACHE`, else
    `~/.cache/zmar_jax`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "zmar_jax")


def kept(given: str | os.PathLike[str]) -> Path:
    """A folder, `~` expanded; of a URL the folder in `cache_folder` for copies of what lies there.

    Raises:
      PlaceError: as `place`.
    """
    where = place(given)
    if isinstance(where, Path):
        return where
    digest = hashlib.blake2b(where.encode(), digest_size=8).hexdigest()
    return cache_folder() / "data" / digest


def _check_installed(scheme: str, text: str) -> None:
    module, _, extra = _KINDS[scheme]
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise PlaceError(
            f"{text}: needs {package}: pip install 'zmar-jax[{extra}]' (in a clone: pip "
            f"install '.[{extra}]')"
        )


def _filesystem(scheme: str) -> Any:
    module, kind, _ = _KINDS[scheme]
    # of gcsfs its plain kind: the other first asks for the layout of each bucket, by another way
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # they log whole tracebacks of the errors that are raised here as one line
    logging.getLogger(module.partition(".")[0]).setLevel(logging.CRITICAL)
    # a listing that is remembered would not show what other machines write
    return getattr(importlib.import_module(module), kind)(use_listings_cache=False)


class Bucket:
    """The objects below a URL, by their names relative to it. Faults that pass are tried again.

    Every method raises PlaceError for what stays wrong, as a missing permission; and
    FileNotFoundError where `read` and `fetch` find no object.
    """

    def __init__(self, url: str):
        """A URL as `place` returns it."""
        self.url = url
        self._root = url.partition("://")[2]
        with self._errors("reached"):
            self._files = _filesystem(url.partition("://")[0])

    def names(self, below: str = "") -> dict[str, int]:
        """The size of each object below this name."""
        root = f"{self._root}/{below}".rstrip("/")
        with self._errors("listed", below):
            found = self._files.find(root, detail=True)
        return {
            name[len(self._root) + 1 :]: int(about["size"])
            for name, about in sorted(found.items())
            if name.startswith(f"{root}/")
        }

    def is_object(self) -> bool:
        """Whether the URL itself is an object, as a file is."""
        with self._errors("read"), contextlib.suppress(FileNotFoundError):
            return self._files.info(self._root)["type"] == "file"  # `isfile` hides what is wrong
        return False

    def read(self, name: str = "") -> bytes:
        with self._errors("read", name):
            return self._files.cat_file(self._key(name))

    def write(self, name: str, data: bytes) -> None:
        """The object of this name is these bytes: whoever looks sees the old one or the new one."""
        with self._errors("written", name):
            self._files.pipe_file(self._key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Makes the object where there is none; whether it was this call that did."""
        with self._errors("written", name):
            try:
                self._files.pipe_file(self._key(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, source: Path, name: str) -> None:
        """The file as the object of this name, as `write`."""
        with self._errors("written", name):
            self._files.put_file(str(source), self._key(name))

    def fetch(self, name: str, target: Path) -> None:
        """The object as a file; makes the folder that it is in."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._errors("read", name):
            self._files.get_file(self._key(name), str(target))

    def remove(self, *names: str) -> None:
        """These objects go, one after the other; what is gone already is no error."""
        for name in names:
            with self._errors("removed", name), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str = "") -> Iterator[None]:
        """Errors of the network and of many libraries, in one line."""
        shown = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except PlaceError:
            raise
        except FileNotFoundError as e:
            if verb in ("read", "removed"):
                raise FileNotFoundError(shown) from e
            problem = "no such bucket; make it, or name another"
            raise PlaceError(f"{shown}: cannot be {verb}: {problem}") from e
        except Exception as e:  # of the network and of many libraries
            said = " ".join(str(e).split())[:300] or type(e).__name__
            refused = isinstance(e, PermissionError) or said.startswith("Forbidden")
            advice = "ask for the permission" if refused else "mend that, and start again"
            raise PlaceError(f"{shown}: cannot be {verb}: {said}; {advice}") from e
