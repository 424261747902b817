"""What the processes of one run tell each other.

A process that raises alone leaves the others waiting for it. So whatever one of them may find wrong
is done by `together`, and whatever all of them must have alike goes through `agree`.
"""

import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax

from zmar_jax.runtime import coordination

T = TypeVar("T")
_NAMED = 4
"""Hosts of one value that a table names; a pod has hundreds."""


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
      HostsDifferError: in all processes; a table of each fact that differs, with every value.
    """
    told = [json.loads(text) for text in gather(json.dumps([socket.gethostname(), dict(facts)]))]
    names = [f"process {i} ({host})" for i, (host, _) in enumerate(told)]
    everyone = [theirs for _, theirs in told]
    values = {
        name: [theirs.get(name) for theirs in everyone]
        for name in dict.fromkeys(itertools.chain(*everyone))
    }
    rows = [
        (name, _by_value(names, found))
        for name, found in values.items()
        if any(value != found[0] for value in found)
    ]
    if rows:
        width = max(len(name) for name, _ in rows)
        lines = "".join(f"\n  {name:{width}}  {who}" for name, who in rows)
        raise HostsDifferError(
            f"the hosts of this run do not see the same:{lines}\nstart the same command on each, "
            "with the same files and versions"
        )


@contextlib.contextmanager
def ending_with_the_others(end: Callable[[str], object]) -> Iterator[None]:
    """In the block, an error of the runtime between processes is that another one has gone.

    Args:
      end: called in a thread with what to say, where another has shown no life for
        `coordination.GONE` seconds; it ends this process, which may be waiting for the other.

    Raises:
      HostLostError: instead of such an error, where there are several processes.
    """
    with coordination.watching(lambda gone: end(_lost(gone, "no sign of life"))) as missing:
        try:
            yield
        except jax.errors.JaxRuntimeError as e:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(e):
                raise
            raise HostLostError(_lost(missing(), str(e).splitlines()[0])) from e


def _lost(names: Sequence[str], why: str) -> str:
    return (
        f"{' and '.join(names) or 'another host'} of this run has gone ({why}); the same command, "
        "on all of them, goes on from the newest checkpoint; --restarts N does so by itself"
    )


def _by_value(names: Sequence[str], values: Sequence[Any]) -> str:
    """Who has which value; of many that have the same, the first."""
    groups: dict[str, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(json.dumps(value), []).append(name)
    return "; ".join(
        ", ".join(who[:_NAMED]) + f" and {len(who) - _NAMED} more" * (len(who) > _NAMED) + f": {v}"
        for v, who in groups.items()
    )


def gather(text: str) -> list[str]:
    """The texts of all processes, which all make this call."""
    return [text] if jax.process_count() == 1 else coordination.exchange(text)
