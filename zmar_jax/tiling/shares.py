"""Rows of an image on several devices: each has a share, and fetches what it needs around it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import ops

Array = jax.Array

LEAST = 4
"""Shares begin at least so many rows of the coarsest level apart, twice its widest halo."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """Equally many rows for each device along the mesh's axis, for use inside `jax.shard_map`.

    Where the height does not divide, shares overlap: both devices compute the rows that they have
    in common, and sums count them once. Arrays of coarser levels are split at the same places.

    Raises:
      ValueError: too few rows for so many devices.
    """

    axis: str
    count: int
    height: int
    """Of the image, a multiple of `stride`."""
    stride: int
    """A share begins at a multiple of it, so that each level of the model has whole rows of it."""

    def __post_init__(self) -> None:
        most = most_shares(self.height, self.stride)
        if self.count > most:
            raise ValueError(
                f"{self.height} rows can be split over at most {most} devices, got {self.count}"
            )

    @property
    def rows(self) -> int:
        """Rows of each share."""
        return self.stride * -(-self.height // (self.stride * self.count))

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each share."""
        free, gaps = (self.height - self.rows) // self.stride, max(self.count - 1, 1)
        return tuple(self.stride * (i * free // gaps) for i in range(self.count))

    def take(self, x: Array) -> Array:
        """This device's share of the rows of x, all of which it has, at any level."""
        factor = self.height // x.shape[1]
        return lax.dynamic_slice_in_dim(x, self._mine(self._starts(factor)), self.rows // factor, 1)

    def window(self, x: Array, halo: int) -> Array:
        """The share [B, n, ...] with rows around it: [B, n + 2 halo, ...], within the image."""
        starts, height = self._level(x.shape[1])
        around, offsets = self._around(x, 2 * halo, 2 * halo), []
        for start in starts:
            first = min(max(start - halo, 0), height - x.shape[1] - 2 * halo)
            offsets.append(first - start + 2 * halo)
        return lax.dynamic_slice_in_dim(around, self._mine(offsets), x.shape[1] + 2 * halo, 1)

    def wanted(self, rows: int, halo: int) -> tuple[Array, Array]:
        """Where in its window the share of `rows` begins, and which of them this device counts.

        Returns:
          int32, and bool [1, rows, 1, 1].
        """
        starts, height = self._level(rows)
        offsets = [start - min(max(start - halo, 0), height - rows - 2 * halo) for start in starts]
        row = self._mine(starts) + jnp.arange(rows)
        return self._mine(offsets), (row >= self._mine(self._counted(starts, rows))).reshape(
            1, -1, 1, 1
        )

    def total(self, x: Array) -> Array:
        """The sum over devices."""
        return lax.psum(x, self.axis)

    def mix_cells(self, fn: Callable[[Array], Array], x: Array, attention: Array) -> Array:
        """`ops.mix_cells` of fn(x), x padded to whole cells, as for `Rows.mix_cells`.

        The devices pass their rows around in a ring, and each adds what it needs.
        """
        rows = x.shape[1]
        starts, height = self._level(rows)
        grid = attention.shape[1]
        padded = height + -height % grid
        extra = padded - height
        y = self._cell_rows(fn, x, height, extra)
        # every device now has `extra` rows more, the last one the padding
        ends = [start + rows + extra for start in starts]
        counted = self._counted(starts, rows + extra)
        mine = self._mine(starts) + jnp.arange(rows)
        cell = padded // grid
        band, offset = mine // cell, mine % cell
        shape = (*x.shape[:2], grid, x.shape[2] // grid, -1)
        mixing = attention.astype(y.dtype)[:, band]  # [B, rows, grid, grid, grid]
        ring = [(i, (i - 1) % self.count) for i in range(self.count)]

        def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            total, chunk = carry
            owner = (lax.axis_index(self.axis) + i) % self.count
            begin, low, high = (jnp.array(t)[owner] for t in (starts, counted, ends))
            for k in range(grid):
                row = k * cell + offset
                there = (row >= low) & (row < high)
                index = jnp.clip(row - begin, 0, chunk.shape[1] - 1)
                picked = jnp.take(chunk, index, axis=1).reshape(shape)
                weights = jnp.where(there.reshape(1, -1, 1, 1), mixing[:, :, :, k], 0)
                total += jnp.einsum(
                    "brjl,brlwc->brjwc", weights, picked, precision=ops.HIGHEST
                ).reshape(total.shape)
            return (total, lax.ppermute(chunk, self.axis, ring)), None

        zeros = jnp.zeros((*x.shape[:3], y.shape[-1]), y.dtype)
        return lax.scan(step, (zeros, y), jnp.arange(self.count))[0][0]

    def _cell_rows(self, fn: Callable[[Array], Array], x: Array, height: int, extra: int) -> Array:
        """fn of this share and `extra` rows below it; below the image, of its reflection."""
        rows = x.shape[1]
        starts, _ = self._level(rows)
        above, size, padded = 2, rows + extra + 2, height + extra
        around = self._around(x, above, extra + 2)
        start = self._mine(starts)
        first = jnp.clip(start - 1, 0, padded - size)
        row = first + jnp.arange(size)
        row = jnp.where(row < height, row, 2 * (height - 1) - row)
        index = jnp.clip(row - start + above, 0, around.shape[1] - 1)
        y = fn(jnp.take(around, index, axis=1))
        return lax.dynamic_slice_in_dim(y, start - first, rows + extra, 1)

    def _around(self, x: Array, above: int, below: int) -> Array:
        """x with rows of the neighbours; what is beyond the image is arbitrary.

        Raises:
          ValueError: so many rows are not of the neighbours alone.
        """
        rows = x.shape[1]
        starts, _ = self._level(rows)
        gap = min((b - a for a, b in itertools.pairwise(starts)), default=math.inf)
        if max(above, below) > gap:
            raise ValueError(
                f"shares that begin {gap} rows apart do not have the {max(above, below)} around "
                "them that a layer needs; take fewer devices, or raise LEAST in tiling/shares.py"
            )
        after, before = (*starts[1:], starts[-1]), (starts[0], *starts[:-1])
        # what each device sends down and up
        down = [b - above - a for a, b in zip(starts, after, strict=True)]
        up = [b + rows - a for a, b in zip(starts, before, strict=True)]
        last = self.count - 1
        top = lax.dynamic_slice_in_dim(x, self._mine(down), above, 1)
        top = lax.ppermute(top, self.axis, [(i, i + 1) for i in range(last)])
        bottom = lax.dynamic_slice_in_dim(x, self._mine(up), below, 1)
        bottom = lax.ppermute(bottom, self.axis, [(i + 1, i) for i in range(last)])
        return jnp.concatenate([top, x, bottom], 1)

    def _level(self, rows: int) -> tuple[list[int], int]:
        """Starts and height at the level where a share has so many rows."""
        factor = self.rows // rows
        return self._starts(factor), self.height // factor

    def _starts(self, factor: int) -> list[int]:
        return [start // factor for start in self.starts]

    def _counted(self, starts: list[int], rows: int) -> list[int]:
        """The first row of each share that no earlier one has."""
        return [starts[0], *(max(b, a + rows) for a, b in itertools.pairwise(starts))]

    def _mine(self, table: list[int]) -> Array:
        return jnp.array(table)[lax.axis_index(self.axis)]


def most_shares(height: int, stride: int) -> int:
    """Over how many devices an image of so many rows, a multiple of the stride, can be split."""
    count, units = 1, height // stride
    while count < units // LEAST:
        rows = -(-units // (count + 1))
        if (units - rows) // count < LEAST:
            break
        count += 1
    return count
