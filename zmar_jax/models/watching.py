"""Looking on while the plain reference computes: every layer's result, with its parameters."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Tell = Callable[[tuple[Any, ...], Any], None]
"""Called with a layer's arguments, among which its parameters are, and what it returns."""
Function = TypeVar("Function", bound=Callable[..., Any])

_told: contextvars.ContextVar[Tell | None] = contextvars.ContextVar("told", default=None)


def layer(function: Function) -> Function:
    """Marks a function that computes a published layer: `watched` is told of each of its calls."""

    @functools.wraps(function)
    def computed(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if (tell := _told.get()) is not None:
            tell((*arguments, *named.values()), result)
        return result

    return computed  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def watched(tell: Tell) -> Iterator[None]:
    """In the block `tell` hears of every layer that is computed, in the order of computing."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)
