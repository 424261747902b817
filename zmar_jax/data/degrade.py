"""What makes a photograph a low-light one: darkness, and pixels that are lost.

Everything is a pure function of a seed. `xp` is numpy or jax.numpy; both give the same bytes, as
floats are only multiplied and rounded: roots, powers and exponentials are looked up.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from zmar_jax.config import DarkenConfig
from zmar_jax.data.hashing import Array, fold, normal_quantiles, top16
from zmar_jax.data.night import draw_scene, night, whole
from zmar_jax.data.srgb import to_linear, to_srgb

WHITE = 65535
"""Linear light is counted in 1/65535 of white."""
_STREAM = 0x6461726B


def darken_picture(image: np.ndarray, seed: int, config: DarkenConfig) -> np.ndarray:
    """A whole photograph, uint8 [H, W, 3] RGB, in the dark, without a frame; the same shape."""
    if config.kind == "gain":
        return darken(image, seed, config)
    scene = draw_scene(seed, dataclasses.replace(config.night, frames=0.0))
    return night(image, scene, whole(*image.shape[:2]))[0]


def darken(image: Array, seed: Array, config: DarkenConfig, xp: Any = np) -> Array:
    """The photograph with evenly less light, as an 8-bit camera takes it (`kind` gain).

    Linear light (sRGB) times exposure and colour cast, plus shot noise (Gaussian, variance
    signal/photons) and read noise, in sRGB again. Exposure and cast are one draw per call.

    Args:
      image: uint8 [h, w, 3] RGB.
      seed: below 2**32; may be traced.

    Returns:
      uint8 [h, w, 3].
    """
    tables = _tables(config)
    seed = fold(seed, _STREAM, xp=xp)
    draw = top16(fold(seed, np.arange(3), xp=xp), xp)
    red, blue = (xp.take(xp.asarray(tables.gain), d) for d in (draw[1], draw[2]))
    gains = xp.stack([red, xp.ones_like(red), blue]) * xp.take(xp.asarray(tables.exposure), draw[0])
    # [3, 256]: what becomes of each of the values that a channel can have
    light = xp.minimum(xp.rint(xp.asarray(tables.linear)[None] * gains[:, None]), np.float32(WHITE))
    light = light.astype(xp.int32)
    deviation = xp.take(xp.asarray(tables.deviation), light)
    # a row of them: adding [1, 1, 3] takes four times as long
    value = image + np.tile(np.array([0, 256, 512], np.int32), (1, image.shape[1], 1))
    noise = xp.rint(xp.take(deviation, value) * _normals(fold(seed, 3, xp=xp), value.shape, xp))
    noisy = xp.take(light, value) + noise.astype(xp.int32)
    return xp.take(xp.asarray(tables.encoded), xp.clip(noisy, 0, WHITE))


def _normals(seed: Array, shape: tuple[int, ...], xp: Any) -> Array:
    """Standard normal float32 of this shape; two from each hash."""
    n = int(np.prod(shape))
    bits = fold(seed, xp.arange((n + 1) // 2, dtype=xp.uint32), xp=xp)
    halves = xp.concatenate(
        [xp.bitwise_and(bits, xp.uint32(0xFFFF)).astype(xp.int32), top16(bits, xp)]
    )
    return xp.take(xp.asarray(normal_quantiles()), halves[:n].reshape(shape))


class _Tables(NamedTuple):
    exposure: np.ndarray
    """float32 [65536], log-uniform."""
    gain: np.ndarray
    """float32 [65536], log-normal."""
    linear: np.ndarray
    """float32 [256]: light of an sRGB value, of WHITE."""
    deviation: np.ndarray
    """float32 [65536]: of the noise at a signal, both of WHITE."""
    encoded: np.ndarray
    """uint8 [65536]: sRGB value of a light of WHITE."""


@functools.cache
def _tables(config: DarkenConfig) -> _Tables:
    srgb, light = np.arange(256) / 255, np.arange(WHITE + 1) / WHITE
    deviation = np.sqrt(light / config.photons + config.read_noise**2)
    return _Tables(
        np.geomspace(*config.exposure, 65536).astype(np.float32),
        np.exp(config.colour_cast * normal_quantiles()).astype(np.float32),
        (WHITE * to_linear(srgb)).astype(np.float32),
        (WHITE * deviation).astype(np.float32),
        np.rint(255 * to_srgb(light)).astype(np.uint8),
    )
