"""What Pallas kernels over the rows of a picture are made of.

Pixels lie as [W, B, C]: eight images are the eight sublanes of a register, channels its lanes. So
a neighbouring pixel is another register, and shifting by a pixel costs nothing.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

Array = jax.Array

IMAGES = 8
"""Sublanes of a register."""
LANES = 128
"""Lanes of a register."""
PIXELS = 32
"""Of a loop's turn, at most: with fewer, registers wait longer, by libtpu's schedule."""


def columns(width: int) -> tuple[int, int]:
    """How many turns a loop over the pixels of a row takes, and of how many pixels each."""
    turns = -(-width // PIXELS)
    return turns, -(-width // turns)


class Ring(NamedTuple):
    """The last three rows of an array, float32, with a pixel of zeros at both ends.

    ref: [3, columns + 2, IMAGES, F] in VMEM; the row of step s lies at s % 3.
    pixels: of a window.
    """

    ref: Any
    pixels: int

    def clear(self) -> None:
        self.ref[...] = jnp.zeros(self.ref.shape, jnp.float32)

    def clear_row(self, step: Array) -> None:
        self.ref[lax.rem(step, 3)] = jnp.zeros(self.ref.shape[1:], jnp.float32)

    def put(self, step: Array, first: Array | int, lanes: Any, pixels: Array) -> None:
        """Sets pixels [N, IMAGES, lanes] of the row of a step, from column `first` on."""
        self.ref[lax.rem(step, 3), pl.ds(first + 1, len(pixels)), :, lanes] = pixels

    def window(self, step: Array, first: Array, lanes: Any) -> list[Array]:
        """The nine neighbours of the pixels from `first` on, in the row before this step's.

        [pixels, IMAGES, LANES] each, in the order of a kernel's rows and columns.
        """
        near = pl.ds(first, self.pixels + 2)
        rows = (self.ref[lax.rem(step + i, 3), near, :, lanes] for i in (1, 2, 3))
        return [row[j : j + self.pixels] for row in rows for j in range(3)]


def convolve(window: Sequence[Array], taps: Sequence[Array]) -> Array:
    """A depthwise convolution: nine neighbours [pixels, IMAGES, LANES], nine taps [1, 1, LANES]."""
    return functools.reduce(operator.add, map(operator.mul, window, taps))


def over_lanes(channels: int, body: Callable[[Any], None]) -> None:
    """Runs body(first) of every LANES channels: the first of them."""

    @pl.loop(0, channels, step=LANES)
    def _(first: Array) -> None:
        body(pl.multiple_of(first, LANES))


def lanes_from(first: Any) -> Any:
    return pl.ds(first, LANES)


def product(a: Array, b: Array, summed: tuple[int, int] = (1, 0)) -> Array:
    """a @ b of two axes each, to float32; products of float32 are exact to float32.

    Args:
      summed: the axes of a and b that are summed over.
    """
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((summed[0],), (summed[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision, preferred_element_type=jnp.float32)


def flat(x: Array, dtype: Any) -> Array:
    """[W, IMAGES, C] as [W IMAGES, C] of a dtype, for products over the pixels."""
    return x.reshape(-1, x.shape[-1]).astype(dtype)


def normalized(x: Array, eps: float) -> tuple[Array, Array]:
    """x with mean 0 and variance 1 over its channels, and what it was divided by, inverted."""
    y = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y * scale, scale


def normal(x: Array) -> tuple[Array, Array]:
    """The normal distribution's function and density: GELU is x times the first.

    By one exponential for both: Abramowitz and Stegun's formula 7.1.26, whose error is 1e-7.
    """
    bell = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * jnp.abs(x))
    poly = 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = poly * t + coefficient
    tail = 0.5 * poly * t * bell
    return jnp.where(x < 0, tail, 1 - tail), bell * 0.3989422804014327
