"""A folder that one process at a time works in."""

from pathlib import Path

from filelock import FileLock, Timeout


class LockedError(Exception):
    """Another process is at work in the folder."""


def take(folder: Path) -> FileLock:
    """Keeps other processes out of the folder, which is made, until `release` or this one ends.

    Whoever shall be kept out must ask for the same. The file `.lock` in the folder stays.

    Raises:
      LockedError: another one has it. OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise LockedError(folder) from e
    return lock
