"""What the processes of one run tell each other."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from zmar_jax.data.errors import DataError


def primary() -> bool:
    """Whether this is the process that writes what there is once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes have called it."""
    multihost_utils.sync_global_devices(f"zmar_jax.run.{name}")


def from_primary(ask: Callable[[], str]) -> str:
    """What `ask` returns in the first process, which alone calls it."""
    return gather(ask() if primary() else "")[0]


def agree(what: str, text: str) -> None:
    """Raises DataError unless all processes say the same `text`; all must call it."""
    if len(set(gather(text))) > 1:
        raise DataError(
            f"the hosts of this run do not see the same {what}; give each the same folders"
        )


def gather(text: str) -> list[str]:
    """The texts of all processes."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
