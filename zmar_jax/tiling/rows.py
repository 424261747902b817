"""Working on an image by its rows: all at once, in stripes, or in shares on several devices.

What needs only neighbouring pixels is written once, as a function of an image with zero padding at
its edges. It gets windows of the image: the rows that are wanted and, around them, `halo` more.
A window never reaches beyond the image: where one lies at the image's edge, the edges are the
same, and elsewhere what padding spoils lies within the halo, which is dropped. So the results are
those of the whole image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import ops
from zmar_jax.kernels import pad1
from zmar_jax.tiling.shares import Shares

Array = jax.Array


class Window(NamedTuple):
    """Some rows of an image, of which the middle ones are wanted: `rows` from `first` on."""

    rows: int
    first: Array | int = 0
    keep: Array | None = None
    """Which of them sums count, bool [1, rows, 1, 1]: rows may be computed twice. None: all."""

    def crop(self, x: Array) -> Array:
        """The wanted rows of a window."""
        return x if x.shape[1] == self.rows else self._slice(x, self.rows)

    def pad1(self, x: Array) -> Array:
        """The wanted rows of a window and one more on each side, with zeros around the window."""
        return self._slice(pad1(x), self.rows + 2)

    def counted(self, x: Array, other: float = 0) -> Array:
        """x of the wanted rows, with `other` in the rows that sums do not count."""
        if self.keep is None:
            return x
        return jnp.where(self.keep.reshape(1, -1, *[1] * (x.ndim - 2)), x, other)

    def _slice(self, x: Array, rows: int) -> Array:
        return x if x.shape[1] == rows else lax.dynamic_slice_in_dim(x, self.first, rows, 1)


Local = Callable[..., tuple[Array | None, Any]]
"""(window, *arrays) -> (y, sums): the wanted rows of y, and sums over those that count."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of an image are worked on.

    `stripe_bytes`: what the widest array of a stripe takes, about, of each image; None does all
    rows at once.
    `shares`: the rows of each device inside `jax.shard_map`; None is one device with all rows.
    """

    stripe_bytes: int | None = None
    shares: Shares | None = None

    @property
    def whole(self) -> bool:
        """One device does all rows at once."""
        return self.stripe_bytes is None and self.shares is None

    def free(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A Flax module's method; unless `whole` as a pure function, which may run in a scan."""
        if self.whole:
            return method
        module: Any = getattr(method, "__self__", method)
        name = "__call__" if module is method else method.__name__
        alone, variables = module.clone(parent=None, name=None), module.variables
        return lambda *args: alone.apply(variables, *args, method=name)

    def once(self, fn: Callable[..., Array]) -> Callable[..., Array]:
        """fn(window, *arrays) for several passes: where `whole`, computed in the first one only."""
        if not self.whole:
            return fn
        results: list[Array] = []

        def first_time(*args: Any) -> Array:
            if not results:
                results.append(fn(*args))
            return results[0]

        return first_time

    def total(self, x: Array) -> Array:
        """Sum over all rows of the image, each counted once: [B, rows, ...] -> [B, ...]."""
        if self.shares is None:
            return x.sum(1)
        counted = self.shares.wanted(x.shape[1], 0)[1].reshape(1, -1, *[1] * (x.ndim - 2))
        return self.shares.total(jnp.where(counted, x, 0).sum(1))

    def apply(
        self, fn: Local, *arrays: Array, halo: int, width: int, in_place: bool = False
    ) -> tuple[Any, Any]:
        """fn of all rows of the arrays, from windows.

        Args:
          fn: pure unless `whole`; a row of y depends on at most `halo` rows on each side.
          arrays: [B, H, ...] each.
          width: numbers per pixel of the first array (of W columns) in fn's widest array.
          in_place: y takes the place of the first array, and has its shape.
        """
        if self.shares is None:
            return self._stripes(fn, None, arrays, halo, width, in_place)
        rows = arrays[0].shape[1]
        windows = tuple(self.shares.window(a, halo) for a in arrays)
        first, keep = self.shares.wanted(rows, halo)
        if self.stripe_bytes is None:
            y, sums = fn(Window(rows, first, keep), *windows)
        else:
            keep = lax.dynamic_update_slice_in_dim(
                jnp.zeros((1, rows + 2 * halo, 1, 1), bool), keep, first, 1
            )
            y, sums = self._stripes(fn, keep, windows, halo, width, in_place)
            y = y if y is None else Window(rows, first).crop(y)
        return y, jax.tree.map(self.shares.total, sums)

    def _stripes(
        self,
        fn: Local,
        keep: Array | None,
        arrays: tuple[Array, ...],
        halo: int,
        width: int,
        in_place: bool,
    ) -> tuple[Any, Any]:
        height = arrays[0].shape[1]
        rows = stripe_rows(arrays[0].shape, width, halo, self.stripe_bytes)
        size = rows + 2 * halo
        if self.whole:
            return fn(Window(height, 0, keep), *arrays)
        if size >= height:
            # gradients recompute what is wide, as they do in stripes
            again = jax.checkpoint(lambda *a: fn(Window(height, 0, keep), *a), prevent_cse=False)
            return again(*arrays)
        stripes = _Stripes(height, rows, halo, in_place, keep)
        if self.shares is not None:
            return stripes.run(fn, arrays)
        first, fresh = stripes.wanted(jnp.zeros((), int))
        # a custom gradient reaches only what is given: what fn reads from outside is given, too
        pure, closed = jax.closure_convert(
            lambda first, fresh, *windows: fn(Window(rows, first, fresh), *windows),
            *(first, fresh, *stripes.cut(arrays, first)),
        )
        return _differentiable(stripes, pure, arrays, tuple(closed))

    def mix_cells(
        self, fn: Callable[[Array], Array], x: Array, attention: Array, width: int
    ) -> Array:
        """`ops.mix_cells` of fn(x), x [B, H, W, C] padded to whole cells, without the padding.

        Args:
          fn: pure unless `whole`; keeps the shape, and depends on one row on each side.
          width: as for `apply`.
        """
        _, height, columns, _ = x.shape
        grid = attention.shape[1]
        if self.shares is not None:
            x = ops.pad_to_multiple(x, grid, axes=(2,))
            return self.shares.mix_cells(fn, x, attention)[:, :, :columns]
        x = ops.pad_to_multiple(x, grid)
        cell = x.shape[1] // grid
        # a stripe has rows of every row of cells
        shape = (x.shape[0], cell, *x.shape[2:])
        rows = stripe_rows(shape, grid * width, 1, self.stripe_bytes)
        if rows + 2 >= cell:
            return ops.mix_cells(fn(x), attention)[:, :height, :columns]
        y = _mixed_stripes(fn, x, attention, rows)
        return y.reshape(x.shape)[:, :height, :columns]


@dataclasses.dataclass(frozen=True)
class _Stripes:
    """`rows` rows of `height` at a time; the last stripe overlaps where they do not divide it."""

    height: int
    rows: int
    halo: int
    in_place: bool
    keep: Array | None

    @property
    def size(self) -> int:
        """Rows of a window."""
        return self.rows + 2 * self.halo

    @property
    def count(self) -> int:
        return -(-self.height // self.rows)

    def start(self, i: Array) -> Array:
        """First row of stripe i."""
        return jnp.minimum(i * self.rows, self.height - self.rows)

    def first(self, start: Array) -> Array:
        """First row of the window around `start`, within the image."""
        return jnp.clip(start - self.halo, 0, self.height - self.size)

    def wanted(self, i: Array) -> tuple[Array, Array | None]:
        """Where stripe i lies in its window: the first wanted row, and `Window.keep`."""
        start = self.start(i)
        first = start - self.first(start)
        if self.keep is None and self.height % self.rows == 0:
            return first, None
        fresh = (start + jnp.arange(self.rows)).reshape(1, -1, 1, 1) >= i * self.rows
        if self.keep is not None:
            fresh &= lax.dynamic_slice_in_dim(self.keep, start, self.rows, 1)
        return first, fresh

    def cut(self, arrays: tuple[Array, ...], first: Array) -> list[Array]:
        """The windows that begin at this row."""
        return [lax.dynamic_slice_in_dim(a, first, self.size, 1) for a in arrays]

    def run(self, fn: Local, arrays: tuple[Array, ...]) -> tuple[Any, Any]:
        """fn's y and sums of all stripes."""
        compute = lambda i, windows: fn(Window(self.rows, *self.wanted(i)), *windows)  # noqa: E731
        zero = jnp.zeros((), int)
        shape = jax.eval_shape(lambda: compute(zero, self.cut(arrays, zero))[0])
        buffer: Any = None
        if self.in_place:
            buffer, arrays = arrays[0], arrays[1:]
        elif shape is not None:
            buffer = jnp.zeros((shape.shape[0], self.height, *shape.shape[2:]), shape.dtype)

        def step(carry: tuple[Any, Any], i: Array) -> tuple[Any, Any]:
            buffer, before = carry
            done, start = i * self.rows, self.start(i)
            first = self.first(start)
            cut = self.cut(arrays, first)
            if self.in_place:
                (window,) = self.cut((buffer,), first)
                old = self.first(jnp.maximum(done - self.rows, 0))
                window = _restored(window, before, first - old, done - first)
                before = lax.optimization_barrier(window)
                cut = [before, *cut]
            y, sums = compute(i, cut)
            if y is not None:
                buffer = lax.dynamic_update_slice_in_dim(buffer, y, start, 1)
            return (buffer, before), sums

        before = buffer[:, : self.size] if self.in_place else None
        (y, _), sums = lax.scan(step, (buffer, before), jnp.arange(self.count))
        return y, jax.tree.map(lambda s: s.sum(0), sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(
    stripes: _Stripes, pure: Any, arrays: tuple[Array, ...], closed: tuple[Array, ...]
) -> tuple[Any, Any]:
    """`stripes.run` of pure(first, keep, *windows, *closed); its gradient goes in stripes, too.

    It keeps the arrays, and recomputes each stripe from them.
    """
    return stripes.run(lambda wanted, *a: pure(wanted.first, wanted.keep, *a, *closed), arrays)


def _stripes_fwd(
    stripes: _Stripes, pure: Any, arrays: tuple[Array, ...], closed: tuple[Array, ...]
) -> tuple[Any, Any]:
    return _differentiable(stripes, pure, arrays, closed), (arrays, closed)


def _stripes_bwd(stripes: _Stripes, pure: Any, kept: Any, given: Any) -> tuple[Any, Any]:
    (arrays, closed), (dy, dsums) = kept, given

    def step(gradients: Any, i: Array) -> tuple[Any, None]:
        start, (first, fresh) = stripes.start(i), stripes.wanted(i)
        window = stripes.first(start)
        cut = stripes.cut(arrays, window)
        vjp = jax.vjp(lambda cut, closed: pure(first, fresh, *cut, *closed), cut, closed)[1]
        dstripe = None
        if dy is not None:
            dstripe = lax.dynamic_slice_in_dim(dy, start, stripes.rows, 1)
            dstripe = dstripe if fresh is None else jnp.where(fresh, dstripe, 0)
        dcut, dclosed = vjp((dstripe, dsums))
        darrays, total = gradients
        # neighbouring windows overlap, and each adds to what the others gave
        darrays = tuple(
            lax.dynamic_update_slice_in_dim(d, new + old, window, 1)
            for d, new, old in zip(darrays, dcut, stripes.cut(darrays, window), strict=True)
        )
        return (darrays, jax.tree.map(jnp.add, total, dclosed)), None

    zeros = jax.tree.map(jnp.zeros_like, (arrays, closed))
    return lax.scan(step, zeros, jnp.arange(stripes.count))[0]


_differentiable.defvjp(_stripes_fwd, _stripes_bwd)


WHOLE = Rows()
LEAST_ROWS = 8
"""Rows of a stripe for each row of its halo, with fewer of which most of the work is halo."""


def stripe_rows(shape: tuple[int, ...], width: int, halo: int, stripe_bytes: int | None) -> int:
    """Rows of a stripe of [B, H, W, ...], `width` numbers a pixel, `stripe_bytes` in each image.

    Whatever B is: a batch may lie on many devices, and in narrow stripes most of the work is halo.
    All of H where `stripe_bytes` is None. Else at least LEAST_ROWS for each row of halo, or up to a
    third fewer, if these divide H.
    """
    h, w = shape[1:3]
    if stripe_bytes is None:
        return h
    most = max(stripe_bytes // (4 * w * width), LEAST_ROWS * halo)
    least = math.ceil(h / most)
    # stripes that divide the image need no masks; one or a quarter more of them is worth it
    even = (n for n in range(least, least + max(2, least // 4)) if h % n == 0)
    return math.ceil(h / next(even, least))


def _restored(window: Array, before: Array, shift: Array, done: Array) -> Array:
    """The window with its first `done` rows as they were, from the last window, `shift` above."""
    size = window.shape[1]
    old = lax.dynamic_slice_in_dim(jnp.concatenate([before, before], 1), shift, size, 1)
    return jnp.where(jnp.arange(size).reshape(1, -1, 1, 1) < done, old, window)


def _mixed_stripes(fn: Callable[[Array], Array], x: Array, attention: Array, rows: int) -> Array:
    """Mixed cells from stripes of the same rows of every row of cells: [B, grid, H/grid, W, C]."""
    b, height, w, c = x.shape
    grid = attention.shape[1]
    cell, size = height // grid, rows + 2

    def step(y: Array, i: Array) -> tuple[Array, None]:
        start = jnp.minimum(i * rows, cell - rows)
        tops = [k * cell + start for k in range(grid)]
        firsts = [jnp.clip(top - 1, 0, height - size) for top in tops]
        cut = [
            lax.dynamic_slice_in_dim(fn(lax.dynamic_slice_in_dim(x, f, size, 1)), top - f, rows, 1)
            for top, f in zip(tops, firsts, strict=True)
        ]
        mixed = ops.mix_cells(jnp.concatenate(cut, 1), attention)
        mixed = mixed.reshape(b, grid, rows, w, c)
        return lax.dynamic_update_slice_in_dim(y, mixed, start, 2), None

    y = jnp.zeros((b, grid, cell, w, c), jax.eval_shape(fn, x).dtype)
    return lax.scan(step, y, jnp.arange(-(-cell // rows)))[0]
