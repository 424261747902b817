"""Errors of other libraries and of the system as this project's own, in one line."""

import contextlib
from collections.abc import Callable, Iterator, Sequence


@contextlib.contextmanager
def errors_as(
    kind: type[Exception],
    text: Callable[[Exception], str],
    of: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Iterator[None]:
    """Errors `of` these types become kind(text(error)); those of `kind` stay as they are."""
    try:
        yield
    except kind:
        raise
    except of as error:
        raise kind(text(error)) from error


def brief(error: Exception) -> str:
    """Any error in one short line, without TensorStore's description of the array."""
    text = " ".join(str(error).split()).partition("[tensorstore_spec")[0]
    return f"{type(error).__name__}: {text[:300]}"


def few(items: Sequence[str], joint: str = ", ", most: int = 20) -> str:
    """The first of a list that may be long, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return joint.join([*items[:most], *more])
