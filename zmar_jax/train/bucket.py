"""A run whose workdir is a bucket: it works in a folder of this machine, which a mirror puts there.

Orbax 0.12 itself writes to no s3://, and to gs:// so that this project's digests would have to be
read back over the network. So Orbax writes to the disk, and the files of a checkpoint that is whole
become objects in the background, `digests.json` last: without it there is no checkpoint. It is
removed first. What the log writes is put at log steps, every object by one request.

```
WORKDIR/.lock/N               the lock (`files.lease`)
WORKDIR/checkpoints/STEP/     and all else as on a disk (`weights.folder`)
```
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from zmar_jax.files.lease import Lease
from zmar_jax.files.lock import LockedError
from zmar_jax.files.mirror import Mirror
from zmar_jax.files.places import PlaceError
from zmar_jax.runtime.processes import primary
from zmar_jax.weights import folder
from zmar_jax.weights.checkpoint import CheckpointError

_EVERY = 10.0
"""Seconds between two puts of the log: a bucket takes about one a second of each object."""
_CHECKPOINTS = "checkpoints"
_LOG = ("metrics.jsonl", "config.yaml")
"""What a run that goes on reads and writes further; the rest has names of its own each time."""


class RunBucket:
    """The bucket of one process of a run. The first alone writes; all read."""

    def __init__(self, work: Path, url: str):
        """work: the folder that this process works in, empty."""
        self.work, self.url = work, url
        self._mirror = Mirror(work, url)
        self._lease: Lease | None = None
        self._thread = ThreadPoolExecutor(1, "bucket")
        self._putting: Future[None] | None = None
        self._put_at = 0.0
        self._failed = False

    def lock(self) -> Callable[[], None]:
        """Locks the bucket; returns what unlocks it.

        Raises:
          LockedError: another run is at work. PlaceError: nothing can be written.
        """
        self._lease = Lease(self.url)
        return self._lease.release

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def pull(self) -> None:
        """Fetches what tells of the run: configuration, log, and of each checkpoint all but its
        state. The first process removes what one that was killed has put half."""
        bucket = self._mirror.bucket
        names = list(bucket.names(_CHECKPOINTS))
        whole = {_step(name) for name in names if name.endswith(f"/{folder.DIGESTS}")}
        if primary():
            bucket.remove(*(name for name in names if _step(name) not in whole))
        few = folder.without_states(names)
        self._mirror.pull(lambda name: name in few, _CHECKPOINTS)
        for name in _LOG:
            with contextlib.suppress(FileNotFoundError):
                bucket.fetch(name, self.work / name)
        for name in bucket.names("damaged"):  # so that these names are taken
            (self.work / "damaged" / name.split("/")[1]).mkdir(parents=True, exist_ok=True)

    def complete(self, step: int) -> None:
        """Fetches what `pull` has left out of a checkpoint."""
        state = f"{_CHECKPOINTS}/{step}/state"
        if not (self.work / state).exists():
            self._mirror.pull(below=state)

    def put_checkpoint(self, files: Path, step: int) -> None:
        """Puts the log until then, and the files of a whole checkpoint, which lie in `files`.

        Raises:
          CheckpointError: another run has begun meanwhile. PlaceError: one could not be put; the
            bucket has no such checkpoint then.
        """
        if self._lease:
            try:
                self._lease.check()
            except LockedError as e:
                raise CheckpointError(
                    f"{self.url}: another training has begun to write this run, as this one could "
                    "not be seen at work; this one ends"
                ) from e
        # in the thread that puts the log: no two at once
        self._thread.submit(self._mirror.push, _of_the_log).result()
        names = [f.relative_to(files).as_posix() for f in files.rglob("*") if f.is_file()]
        for name in sorted(names, key=lambda name: (name == folder.DIGESTS, name)):
            self._mirror.bucket.put(files / name, f"{_CHECKPOINTS}/{step}/{name}")

    def keep_only(self, steps: Iterable[int]) -> None:
        """Removes all other checkpoints."""
        kept = set(steps)
        names = self._mirror.bucket.names(_CHECKPOINTS)
        gone = [name for name in names if (step := _step(name)) is not None and step not in kept]
        gone.sort(key=lambda name: not name.endswith(f"/{folder.DIGESTS}"))
        self._mirror.bucket.remove(*gone)

    def put_log(self, warn: Callable[[str], None], now: bool = False) -> None:
        """Puts what is not of checkpoints, in the background and not too often, or `now`.

        What cannot be put is warned of once, and put later.

        Raises:
          PlaceError: it cannot be put, of a call with `now`.
        """
        if not now and time.monotonic() - self._put_at < _EVERY:
            return
        if self._putting and (now or self._putting.done()):
            self._report(self._putting, warn)
        elif self._putting:
            return
        self._put_at = time.monotonic()
        self._putting = self._thread.submit(self._mirror.push, _of_the_log)
        if now:
            self._putting.result()
            self._putting = None

    def _report(self, done: Future[None], warn: Callable[[str], None]) -> None:
        try:
            done.result()
        except PlaceError as e:
            if not self._failed:
                warn(f"{e}; training goes on, and the log is put there later")
            self._failed = True
        else:
            self._failed = False


def _step(name: str) -> int | None:
    """The step of the checkpoint that an object belongs to."""
    parts = name.split("/")
    return int(parts[1]) if parts[1:] and parts[1].isdecimal() else None


def _of_the_log(name: str) -> bool:
    return not name.startswith(f"{_CHECKPOINTS}/")
