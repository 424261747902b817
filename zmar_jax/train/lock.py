"""One training in a workdir at a time, which is a folder or a bucket."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from zmar_jax.files.errors import brief
from zmar_jax.files.lock import LockedError, take
from zmar_jax.files.mirror import named, scratch
from zmar_jax.files.places import Place, PlaceError
from zmar_jax.runtime.processes import from_primary, primary, together
from zmar_jax.train.bucket import RunBucket
from zmar_jax.weights.checkpoint import CheckpointError


@contextlib.contextmanager
def only_training(
    workdir: Place, warn: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[Path, RunBucket | None]]:
    """Keeps other trainings out of the workdir, which is made, until left or the process ends.

    Each would remove what the other is about to save. All processes of a run must enter it.

    Returns:
      The folder to work in, and what puts it into the bucket where the workdir is one.

    Raises:
      CheckpointError: another training is there, or the folder cannot be written.
      PlaceError: the bucket cannot be read or written.
    """
    if isinstance(workdir, Path):
        with _locked(workdir, lambda: take(workdir).release):
            yield workdir, None
        return
    with scratch(workdir.rpartition("/")[2]) as folder, named(folder, workdir):
        bucket = RunBucket(folder, workdir)
        with contextlib.closing(bucket), _locked(workdir, bucket.lock):
            together(bucket.pull)
            try:
                yield folder, bucket
            except BaseException:
                if primary():
                    with contextlib.suppress(PlaceError):  # what ended the run is told
                        bucket.put_log(warn, now=True)
                raise
            together(lambda: primary() and bucket.put_log(warn, now=True))


@contextlib.contextmanager
def _locked(workdir: Place, lock: Callable[[], Callable[[], object]]) -> Iterator[None]:
    """Locks in the first process; `lock` returns what unlocks."""
    unlocks: list[Callable[[], object]] = []

    def problem() -> str:  # in words, as all processes have to raise it
        try:
            unlocks.append(lock())
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
        for unlock in unlocks:
            unlock()
