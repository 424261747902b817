"""Dark pictures brightened by a curve, before a model sees them. Not in the paper.

A crop does not show how dark its whole picture is, so the whole picture is measured. Nothing that
is measured is an extreme value: a white pixel, a lamp, lost pixels or a black frame change a
logarithmic mean of blocks by little. How much of the curve is used depends on that mean alone:

    m = geometric mean of the blocks' brightness, in (0, 1]
    t = max(m, min(brightness, 1.32 brightness m / (m + 0.013)))
    y = (1 - exp(-s x)) / (1 - exp(-s)), with s such that m becomes t

A darker photograph is mostly of a darker scene, too, hence t's dependence on m. White stays white,
and a picture with m >= brightness stays as it is.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from zmar_jax.imaging.lost import fill, find_lost

BLOCK = 8
"""Edge of the blocks that are measured, pixels."""
BLACK = 1.5 / 255
"""Blocks of at most this mean, of 1 = white, say nothing: frames, lost areas, crushed shadows."""
HEADROOM, TOE = 1.32, 0.013
NEUTRALITY = 0.8
"""How far the channels' means are brought together in a dark picture: 0 not at all, 1 to grey."""
CAST_LIMIT = 2.5


class Exposure(NamedTuple):
    """What makes a picture bright: a gain for each channel, and the curve's strength."""

    strength: float = 0.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Seen(NamedTuple):
    """A picture as a model is to see it; bool [H, W], which of its pixels are lost; and how much of
    what it shows stays, from 0 to 1: all of a picture that needed no light."""

    image: np.ndarray
    lost: np.ndarray
    kept: float = 0.0

    @property
    def lost_share(self) -> float:
        return float(self.lost.mean())

    def keep(self, restored: np.ndarray) -> np.ndarray:
        """A restoration [H, W, 3], of 1 = white, with what stays of the pixels that are there."""
        if self.kept < 1e-3:
            return restored
        shown = self.image / np.iinfo(self.image.dtype).max
        return restored + np.where(self.lost[..., None], 0, self.kept * (shown - restored))


def as_seen(
    image: np.ndarray,
    brightness: float,
    lost: np.ndarray | None = None,
    factor: float = 1.0,
    hidden: np.ndarray | None = None,
) -> Seen:
    """A picture as a model with this `ModelConfig.brightness` is to see it.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB, the whole picture.
      brightness: 0, as published: the picture stays as it is, but for what the others say.
      lost: bool [H, W], which pixels are lost; None finds them (`lost.find_lost`), or takes those
        that are zero where `brightness` is 0.
      factor: above 1 brighter than chosen, below 1 darker.
      hidden: bool [H, W], pixels that do not count, as those that are transparent; they are shown
        in the mean colour of the others.

    Returns:
      image: the same shape and dtype. Lost pixels are guessed from those around where there is a
        brightness (`lost.fill`); else they, and only they, are zero in all channels.
    """
    if hidden is not None and brightness and hidden.any() and not hidden.all():
        image = np.where(hidden[..., None], image[~hidden].mean(0).astype(image.dtype), image)
    if not brightness and lost is None and factor == 1:
        return Seen(image, image.max(-1) == 0)
    if lost is None:
        lost = find_lost(image).mask if brightness else np.asarray(image.max(-1) == 0)
    counted = lost if hidden is None else lost | hidden
    if not brightness:
        gains = Exposure(gains=(factor, factor, factor))
        return Seen(expose(image, lost, gains), lost)
    exposure = measure(image, counted, brightness, factor)
    seen = fill(expose(image, lost, exposure), lost)
    return Seen(seen, lost, math.exp(-exposure.strength))


def expose(image: np.ndarray, lost: np.ndarray, exposure: Exposure) -> np.ndarray:
    """The picture as a model that wants bright pictures is to see it.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB.
      lost: bool [H, W], True where a pixel is lost.

    Returns:
      The same shape and dtype. Lost pixels, and only these, are zero in all channels.
    """
    full = np.iinfo(image.dtype).max
    values = np.arange(full + 1) / full
    bright = np.empty_like(image)
    for c, gain in enumerate(exposure.gains):
        y = _curve(np.minimum(values * gain, 1), exposure.strength)
        table = np.maximum(np.rint(full * y), 1).astype(image.dtype)
        bright[..., c] = table[image[..., c]]
    bright[lost] = 0
    return bright


def measure(
    image: np.ndarray, lost: np.ndarray, brightness: float, factor: float = 1.0
) -> Exposure:
    """The exposure of a picture for a model with this `ModelConfig.brightness`.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB, the whole picture.
      lost: bool [H, W]; these pixels do not count.
      factor: above 1 brighter than chosen, below 1 darker.
    """
    return choose(block_means(image, lost), brightness, factor)


def block_means(image: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """float32 [n, 3]: means, of 1 = white, of the blocks in which at least a quarter is there."""
    height, width = (max(n // BLOCK, 1) for n in lost.shape)
    there = np.where(lost, np.float32(0), np.float32(1))
    shares = cv2.resize(there, (width, height), interpolation=cv2.INTER_AREA)
    lit = image.astype(np.float32) / np.iinfo(image.dtype).max * there[..., None]
    means = cv2.resize(lit, (width, height), interpolation=cv2.INTER_AREA)
    counted = shares >= 0.25
    return means[counted] / shares[counted][:, None]


def choose(blocks: np.ndarray, brightness: float, factor: float = 1.0) -> Exposure:
    """What `measure` returns, from `block_means`."""
    lit = blocks[blocks.mean(-1) > BLACK]
    if not len(lit):
        return Exposure()
    level = _geometric_mean(lit.mean(-1))
    wanted = min(brightness, HEADROOM * brightness * level / (level + TOE))
    wanted = min(max(level, wanted) * factor, 0.9)
    strength = _strength(level, wanted) if wanted > level else 0.0
    channels = np.array([_geometric_mean(channel) for channel in lit.T])
    power = NEUTRALITY * (1 - math.exp(-strength / 4))
    gains = np.clip((channels.mean() / channels) ** power, 1 / CAST_LIMIT, CAST_LIMIT)
    if wanted < level:
        gains = gains * wanted / level
    return Exposure(strength, tuple(gains.tolist()))


def _curve(x: np.ndarray, strength: float) -> np.ndarray:
    return np.expm1(-strength * x) / math.expm1(-strength) if strength > 1e-30 else x


def _strength(level: float, wanted: float) -> float:
    """The strength at which the curve takes level to wanted, above it; by halving."""
    low, high = 0.0, 1.0
    at = lambda s: math.expm1(-s * level) / math.expm1(-s)  # noqa: E731
    while at(high) < wanted and high < 512:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    return high


def _geometric_mean(x: np.ndarray) -> float:
    return float(np.exp(np.log(x + 1 / 255).mean()))
