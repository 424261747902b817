"""Checkpoints of a run in a bucket: every process reads them for itself, and the first one saves.

The processes see no common folder, which Orbax needs to write from all of them. So the state is
gathered in the first, array by array.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from zmar_jax.config import Config
from zmar_jax.runtime.processes import agree, primary, together
from zmar_jax.train.bucket import RunBucket
from zmar_jax.train.checkpoints import RunCheckpoints
from zmar_jax.weights.checkpoint import on_device

State = TypeVar("State")


class BucketCheckpoints:
    """`RunCheckpoints` of a bucket; all its processes make the same calls."""

    def __init__(
        self,
        bucket: RunBucket,
        config: Config,
        warn: Callable[[str], None],
        accept_changes: bool = False,
        about: Mapping[str, Any] | None = None,
    ):
        """As `RunCheckpoints`, of the files that `bucket` has pulled."""
        self._bucket = bucket
        self._mine = together(
            lambda: RunCheckpoints(bucket.work, config, warn, accept_changes, bucket, about)
        )

    @property
    def latest_good(self) -> Path | None:
        return self._mine.latest_good

    def save(
        self, step: int, state: Any, data_state: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """As `RunCheckpoints.save`; the bucket has it when `wait` returns."""
        if jax.process_count() > 1:
            state = jax.tree.map(_whole, state)
        together(lambda: primary() and self._mine.save(step, state, data_state, metrics))

    def wait(self) -> None:
        """Returns when what was saved is in the bucket. Raises as `RunCheckpoints.wait`."""
        together(self._mine.wait)

    def restore_latest(self, abstract_state: State) -> tuple[int, State, Any] | None:
        """As `RunCheckpoints.restore_latest`."""
        if jax.process_count() == 1:
            return self._mine.restore_latest(abstract_state)
        found = together(lambda: self._mine.restore_latest(on_device(abstract_state)))
        agree({"newest checkpoint in --workdir": found and found[0]})
        if found is None:
            return None
        step, state, data_state = found
        return step, jax.tree.map(_spread, state, abstract_state), data_state

    def close(self) -> None:
        self._mine.close()

    def __enter__(self) -> "BucketCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoints(
    folder: Path,
    bucket: RunBucket | None,
    config: Config,
    warn: Callable[[str], None],
    accept_changes: bool,
    about: Mapping[str, Any],
) -> "RunCheckpoints | BucketCheckpoints":
    """The checkpoints of what `lock.only_training` gave: of the bucket, or of the folder."""
    if bucket:
        return BucketCheckpoints(bucket, config, warn, accept_changes, about)
    return RunCheckpoints(folder, config, warn, accept_changes, about=about)


def _whole(array: jax.Array) -> np.ndarray:
    """All of an array that lies on the devices of several processes; a copy."""
    return np.array(multihost_utils.process_allgather(array, tiled=True))


def _spread(array: jax.Array, like: Any) -> jax.Array:
    """An array of this process's first device where `like` says, over all processes."""
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, like.sharding, lambda index: values[index])
