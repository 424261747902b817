"""One training in a workdir at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from zmar_jax.checkpoint import CheckpointError, brief
from zmar_jax.run.processes import from_primary


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of the workdir, which is made, until left or the process ends.

    Each would remove what the other is about to save. All processes of a run must enter it.

    Raises:
      CheckpointError: another training is there, or the folder cannot be written.
    """
    lock = FileLock(workdir / ".lock")

    def problem() -> str:  # in words, as all processes have to raise it
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return "another training is writing this run; wait until it has ended"
        except OSError as e:
            return f"cannot be written: {brief(e)}; mend that"
        return ""

    if found := from_primary(problem):
        raise CheckpointError(f"{workdir}: {found}, or choose another --workdir")
    try:
        yield
    finally:
        lock.release()
