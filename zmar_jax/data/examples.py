"""Examples of pictures: cut, darkened if they are clean, and with pixels that are lost.

A crop is lit as its whole picture would be: what exposes it is measured on the whole, in the way of
a picture that is restored.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from zmar_jax.config import DataConfig
from zmar_jax.data.degrade import darken, darken_picture
from zmar_jax.data.hashing import fold, id_seed
from zmar_jax.data.masks import apply_mask, draw_mask
from zmar_jax.data.night import Place, draw_scene, night, whole
from zmar_jax.data.sources import Source
from zmar_jax.imaging.exposure import Exposure, expose, measure
from zmar_jax.imaging.lost import candidates, fill, levels
from zmar_jax.imaging.views import View

MEASURED = 1 << 18
"""Pixels of a picture; one that has more is measured at that size, to bound the time."""
_LOSES = 0x6C6F7365


class Dark(NamedTuple):
    """A dark picture, or a part of one, and its ground truth, uint8 [h, w, 3]."""

    low: np.ndarray
    gt: np.ndarray
    compressed: bool = False
    """Whether pixels that are lost are only nearly zero."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of a split by index.

    Args:
      masks: what `masks.load_masks` gave.
      brightness: of the model (`ModelConfig`); 0 leaves crops as dark as they are.
    """

    config: DataConfig
    source: Source
    masks: tuple[np.ndarray, ...]
    brightness: float = 0.0

    @property
    def darkens(self) -> bool:
        """Whether the pictures are clean photographs."""
        return self.source.roles == ("gt",)

    def crop(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random crop of picture i and its ground truth (model.md section 7)."""
        pixels = self.source.read(i)
        height, width, _ = pixels[0].shape
        size = self.config.crop
        cut = round(size * self._shrink(rng, min(height, width) / size))
        top, left = (int(rng.integers(n - cut + 1)) for n in (height, width))
        seed = int(rng.integers(2**32))
        low, gt = (
            _resized(picture[top : top + cut, left : left + cut], (size, size))
            for picture in (pixels[0], pixels[-1])
        )
        scale = size / cut
        place = Place(top * scale, left * scale, size, size, height * scale, width * scale)
        dark = self._dark(low, gt, seed, place)
        low = dark.low
        if self.brightness:
            lost = self._lost_in(dark, seed)
            low = fill(expose(low, lost, self.exposure(pixels, seed, scale)), lost)
        view = _flip(self.config.flip, rng)
        return view.of(low), view.of(dark.gt)

    def whole(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture i and its ground truth; always the same, by its id and the seed."""
        seed = id_seed(self.config.seed, self.source.ids[i])
        pixels = self.source.read(i)
        low, gt = pixels[0], pixels[-1]
        lost = self._lost(seed, whole(*gt.shape[:2]))
        if self.darkens:
            low = darken_picture(gt, seed, self.config.darken)
        return apply_mask(low, lost), np.asarray(gt)

    def exposure(self, pixels: tuple[np.ndarray, ...], seed: int, scale: float = 1.0) -> Exposure:
        """What exposes a crop of a picture with this seed, by all of the picture.

        Measured as `as_seen` measures a picture that is restored: with its noise, and without the
        pixels that it has lost. A larger one than MEASURED is measured at that size.

        Args:
          pixels: as `Source.read` gives them.
          scale: of what is cropped, to the picture's own size.
        """
        height, width, _ = pixels[0].shape
        scale = min(scale, math.sqrt(MEASURED / (height * width)))
        size = round(height * scale), round(width * scale)
        low, gt = (_resized(picture, size) for picture in (pixels[0], pixels[-1]))
        dark = self._dark(low, gt, seed, whole(*size))
        return measure(dark.low, self._lost_in(dark, seed), self.brightness)

    @property
    def _nightly(self) -> bool:
        return self.darkens and self.config.darken.kind == "night"

    def _loses(self, seed: int) -> bool:
        return int(fold(seed, _LOSES)) < self.config.masks.pictures * 2**32

    def _dark(self, low: np.ndarray, gt: np.ndarray, seed: int, place: Place) -> Dark:
        lost = self._lost(seed, place) if self._loses(seed) else None
        if self._nightly:
            scene = draw_scene(seed, self.config.darken.night)
            return Dark(*night(gt, scene, place, lost), scene.compressed_last)
        low = darken(low, seed, self.config.darken) if self.darkens else low
        return Dark(low if lost is None else apply_mask(low, lost), gt)

    def _lost(self, seed: int, place: Place) -> np.ndarray:
        size = round(place.full_height), round(place.full_width)
        window = (int(place.top), int(place.left), place.height, place.width)
        return draw_mask(seed, size, self.config.masks, self.masks, window)

    def _lost_in(self, dark: Dark, seed: int) -> np.ndarray:
        """bool [h, w]: as `lost.find_lost`, where it is known whether pixels are lost."""
        if self._loses(seed) and self.config.masks.source != "none":
            return candidates(levels(dark.low), dark.compressed)[0]
        return np.zeros(dark.low.shape[:2], bool)

    def _shrink(self, rng: np.random.Generator, most: float) -> float:
        most = min(self.config.shrink, most) if self.darkens else 1.0
        return most ** float(rng.random()) if most > 1 else 1.0


def _resized(window: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A window at this height and width."""
    if window.shape[:2] == size:
        return np.asarray(window)
    return cv2.resize(np.asarray(window), size[::-1], interpolation=cv2.INTER_AREA)


def _flip(flip: str, rng: np.random.Generator) -> View:
    """A view as `DataConfig.flip` allows; draws the same numbers whatever `flip` is."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    return View(turns if flip == "dihedral" else 0, mirrored and flip != "none")
