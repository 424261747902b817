"""Composition of bijections."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array


class Bijection(Protocol):
    """`forward` and `inverse`: (array, cond) -> (array, logdet [B])."""

    @property
    def forward(self) -> Callable[..., tuple[Array, Array]]: ...
    @property
    def inverse(self) -> Callable[..., tuple[Array, Array]]: ...


class Pair(NamedTuple):
    """A bijection of two functions."""

    forward: Callable[..., tuple[Array, Array]]
    inverse: Callable[..., tuple[Array, Array]]


def forward(bijections: Sequence[Bijection], x: Array, cond: Any) -> tuple[Array, Array]:
    """One after the other; the sum of their log-determinants."""
    logdets = []
    for bijection in bijections:
        x, logdet = bijection.forward(x, cond)
        logdets.append(logdet)
    return x, sum(logdets[1:], logdets[0])


def inverse(bijections: Sequence[Bijection], y: Array, cond: Any) -> tuple[Array, Array]:
    """The way back: the last one first."""
    logdets = []
    for bijection in reversed(bijections):
        y, logdet = bijection.inverse(y, cond)
        logdets.append(logdet)
    return y, sum(logdets[1:], logdets[0])
