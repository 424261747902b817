"""The notation of docs/model.md in plain jax.numpy: what its formulas call conv1, dw3 and resize.

Arrays are NHWC: B images of H x W pixels and C channels. No convolution has a bias, and products
keep float32 on every platform. These are for `reference`; `kernels` and `ops` have the fast forms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax.models.watching import layer

Array = jax.Array

HIGHEST = lax.Precision.HIGHEST


@layer
def conv1(x: Array, kernel: Array) -> Array:
    """1x1 convolution without bias: [B, H, W, I] with [I, O] -> [B, H, W, O]."""
    return jnp.einsum("bhwi,io->bhwo", x, kernel, precision=HIGHEST)


@layer
def conv3(x: Array, kernel: Array, groups: int = 1) -> Array:
    """3x3 convolution without bias, stride 1, zero padding 1: [B, H, W, I] with [3, 3, I, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", None, None, numbers, groups, precision=HIGHEST
    )


def dw3(x: Array, kernel: Array) -> Array:
    """Depthwise conv3: [B, H, W, C] with [3, 3, 1, C] -> [B, H, W, C]."""
    return conv3(x, kernel, groups=x.shape[-1])


def unshuffle2(x: Array) -> Array:
    """[B, H, W, C] -> [B, H/2, W/2, 4C]; channel c, offset (dy, dx) goes to 4c + 2dy + dx."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, height // 2, width // 2, 4 * c)


def shuffle2(x: Array) -> Array:
    """The inverse of `unshuffle2`."""
    b, height, width, c = x.shape
    x = x.reshape(b, height, width, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * height, 2 * width, c // 4)


def resize(x: Array, factor: int) -> Array:
    """Bilinear to 1/factor of the size, half-pixel centres, no antialiasing."""
    b, height, width, c = x.shape
    shape = (b, height // factor, width // factor, c)
    return jax.image.resize(x, shape, "bilinear", antialias=False, precision=HIGHEST)


def reflect_pad(x: Array, multiple: int) -> Array:
    """Reflects x at the bottom and right, to heights and widths that are multiples."""
    pads = [(0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)]
    return jnp.pad(x, pads, mode="reflect")


def to_cells(x: Array, grid: int) -> Array:
    """[B, H, W, C] -> [B, grid * grid, pixels of a cell, C]; cell p = grid * row + column."""
    b, height, width, c = x.shape
    x = x.reshape(b, grid, height // grid, grid, width // grid, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid * grid, -1, c)


def from_cells(cells: Array, grid: int, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_cells`, to [B, H, W, C]."""
    b, height, width, c = shape
    x = cells.reshape(b, grid, grid, height // grid, width // grid, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def unit_rows(x: Array) -> Array:
    """Each row (the last axis) divided by max(its norm, 1e-12)."""
    # the root of the larger square, since the root of 0 has no gradient
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def channels(v: Array) -> Array:
    """[C] as [1, 1, 1, C], to meet images."""
    return v.reshape(1, 1, 1, -1)


def concatenate(*parts: Array) -> Array:
    """Joins along the channels."""
    return jnp.concatenate(parts, -1)


def unstack(stacked: Any) -> list[Any]:
    """The trees of single blocks or steps, of one whose arrays have an axis for them in front.

    A list, which `unstack` has made already, stays as it is.
    """
    if isinstance(stacked, list):
        return stacked
    count = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda a, k=k: a[k], stacked) for k in range(count)]
