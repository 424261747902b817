"""One training in a workdir at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from zmar_jax.files.errors import brief
from zmar_jax.files.lock import LockedError, take
from zmar_jax.runtime.processes import from_primary
from zmar_jax.weights.checkpoint import CheckpointError


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of the workdir, which is made, until left or the process ends.

    Each would remove what the other is about to save. All processes of a run must enter it.

    Raises:
      CheckpointError: another training is there, or the folder cannot be written.
    """
    locks: list[FileLock] = []

    def problem() -> str:  # in words, as all processes have to raise it
        try:
            locks.append(take(workdir))
        except LockedError:
            return "another training is writing this run; wait until it has ended"
        except OSError as e:
            return f"cannot be written: {brief(e)}; mend that"
        return ""

    if found := from_primary(problem):
        raise CheckpointError(f"{workdir}: {found}, or choose another --workdir")
    try:
        yield
    finally:
        for lock in locks:
            lock.release()
