"""Element-wise affine maps, and the bijections that apply them to channels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from zmar_jax.flow.bijection import Bijection

Array = jax.Array


class InnerMap(Protocol):
    """An invertible map of [B, H, W, C] that acts on each number alone."""

    def forward(self, x: Array) -> Array: ...
    def inverse(self, y: Array) -> Array: ...
    def logdet(self) -> Array:
        """log|det dy/dx| of each row, [B, H]."""
        ...


class Affine(NamedTuple):
    """y = (x + shift) * scale, with positive scales; all are [B, H, W, C]."""

    scale: Array
    shift: Array

    def forward(self, x: Array) -> Array:
        return (x + self.shift) * self.scale

    def inverse(self, y: Array) -> Array:
        return y / self.scale - self.shift

    def logdet(self) -> Array:
        return jnp.log(self.scale).sum((2, 3))


Conditioner = Callable[[Array, Any, int], Sequence[InnerMap]]
"""(fixed channels, condition, number of the other channels) -> maps of the others, in order."""


@dataclasses.dataclass(frozen=True)
class ChannelMaps(Bijection):
    """The channels from `start` on go through maps that the channels before and cond choose.

    `start` is a share of the channels: 0 maps all, and the maps depend on cond alone.
    """

    conditioner: Conditioner
    start: float
    halo: int
    cond_halo: int | None

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        fixed, x, maps = self._chosen(x, cond)
        for inner in maps:
            x = inner.forward(x)
        return self._joined(fixed, x), _total(maps)

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        fixed, y, maps = self._chosen(y, cond)
        for inner in reversed(maps):
            y = inner.inverse(y)
        return self._joined(fixed, y), -_total(maps)

    def _chosen(self, x: Array, cond: Any) -> tuple[Array, Array, Sequence[InnerMap]]:
        start = int(self.start * x.shape[-1])
        fixed, mapped = x[..., :start], x[..., start:]
        return fixed, mapped, self.conditioner(fixed, cond, mapped.shape[-1])

    def _joined(self, fixed: Array, mapped: Array) -> Array:
        return jnp.concatenate([fixed, mapped], -1) if fixed.shape[-1] else mapped


def _total(maps: Sequence[InnerMap]) -> Array:
    first, *others = (inner.logdet() for inner in maps)
    return sum(others, first)
