"""Keeps on disk what took minutes to compile, for the next time that the same code asks for it."""

import gzip
import hashlib
import importlib.metadata
import os
import pickle
import platform
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zmar_jax.files.replacing import whole_file
from zmar_jax.runtime import compilation

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu")
_FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


def kept(question: Any, answer: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """What `answer()` gave when this code, with these compilers, was last asked `question`.

    It lies in the folder of compiled programs (`compilation.cache_folder`), compressed. Any change
    of a source file of the package asks anew.

    Args:
      question: its `repr` tells all that matters.
      answer: gives what can be pickled.
      say: told of the file where one was found.
    """
    folder = compilation.cache_folder()
    if folder is None:
        return answer()
    path = folder / "profiles" / f"{_key(question)}.pickle.gz"
    if path.exists():
        try:
            found = pickle.loads(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error, pickle.UnpicklingError) as e:
            warnings.warn(f"{path}: cannot be read ({e}); it is made again", stacklevel=2)
        else:
            say(f"compiled before, by the same code: {path}")
            return found
    found = answer()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(gzip.compress(pickle.dumps(found)))
    return found


def _key(question: Any) -> str:
    digest = hashlib.sha256(repr(question).encode())
    versions = [f"{name} {_version(name)}" for name in _PACKAGES] + [platform.python_version()]
    flags = [os.environ.get(name, "") for name in _FLAGS]
    digest.update(repr((versions, flags)).encode())
    root = Path(__file__).parents[1]
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
