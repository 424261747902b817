"""What the processes of one run tell each other.

A process that raises alone leaves the others waiting for it. So whatever one of them may find wrong
is done by `together`, and whatever all of them must have alike goes through `agree`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class ProcessError(ValueError):
    """Processes of a run that do not agree, or another one's error; in one line."""


class HostsDifferError(ProcessError):
    """Hosts that were started with something else than the others."""


class HostLostError(ProcessError):
    """Another host that has gone, or cannot be joined: starting all again may do."""


def primary() -> bool:
    """Whether this is the process that writes what there is once."""
    return jax.process_index() == 0


def together(do: Callable[[], T]) -> T:
    """What `do` returns, once it has returned in every process; if it raises in one, all raise.

    All processes must make this call. `do` itself must not wait for the others.

    Raises:
      ProcessError: it raised in another process. In that one, what it raised.
    """
    try:
        result = do()
    except Exception as e:
        gather(str(e) or type(e).__name__)
        raise
    if failed := [f"process {i}: {text}" for i, text in enumerate(gather("")) if text]:
        raise ProcessError("; ".join(failed))
    return result


def from_primary(ask: Callable[[], T]) -> T:
    """What `ask` returns in the first process, which alone calls it. Raises as `together`.

    It must be something that JSON can hold.
    """
    return json.loads(gather(together(lambda: json.dumps(ask()) if primary() else ""))[0])


def agree(facts: Mapping[str, Any]) -> None:
    """Returns if all processes give the same facts; all must call it.

    Args:
      facts: by name, what JSON can hold.

    Raises:
      HostsDifferError: in all processes; names each fact that differs, and two of its values.
    """
    everyone = [json.loads(text) for text in gather(json.dumps(dict(facts)))]
    differ = [
        _difference(name, [theirs.get(name) for theirs in everyone])
        for name in dict.fromkeys(name for theirs in everyone for name in theirs)
        if any(theirs.get(name) != everyone[0].get(name) for theirs in everyone)
    ]
    if differ:
        raise HostsDifferError(
            f"the hosts of this run do not see the same {'; nor the same '.join(differ)}; start "
            "the same command on each, with the same files and versions"
        )


@contextlib.contextmanager
def ending_with_the_others() -> Iterator[None]:
    """In the block, an error of the runtime between processes is that another one has gone.

    Raises:
      HostLostError: instead of such an error, where there are several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(e):
            raise
        raise HostLostError(
            f"another host of this run has gone ({str(e).splitlines()[0]}); the same command, on "
            "all of them, goes on from the newest checkpoint; --restarts N does so by itself"
        ) from e


def _difference(name: str, values: list[Any]) -> str:
    other = next(i for i, value in enumerate(values) if value != values[0])
    return (
        f"{name}: {json.dumps(values[0])} in process 0, {json.dumps(values[other])} in process "
        f"{other}"
    )


def gather(text: str) -> list[str]:
    """The texts of all processes."""
    if jax.process_count() == 1:
        return [text]
    # names of files need not be UTF-8
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[:size].tobytes().decode("utf-8", "surrogateescape")
        for row, size in zip(rows, sizes, strict=True)
    ]
