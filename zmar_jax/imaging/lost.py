"""Which pixels of a picture are lost. Zero does not mean lost, and lost does not mean zero.

Lost pixels are zero before a file is compressed; JPEG makes them nearly zero. Black pixels that are
not lost: frames, crushed shadows, silhouettes. Lost pixels differ from these: their neighbours are
much brighter, they lie all over the picture, and they form no large solid area.
"""

from typing import NamedTuple

import cv2
import numpy as np

SOLID, DEEP = 49, 13
"""An area that a square of this edge fits into is not lost, pixels; at the picture's border it need
only be so deep. Lost blocks have edges of 12 at most, but touch each other."""
NEAR = 75
"""Frames end in wedges: so near to an area, black pixels do not tell of lost ones."""
AROUND = 17
"""Edge of the neighbourhood that a pixel is compared with, pixels."""
DARK, DIM = 0.3, 0.4
"""A pixel below the first share of its neighbourhood's mean is unlike it; shadows and noise have
many pixels between the two."""
NEARLY_BLACK = 28
"""What JPEG makes of zero is at most this, of 255."""
REACH = 3
"""How far from a lost pixel those are that it is guessed from, pixels."""


class Lost(NamedTuple):
    """Lost pixels, and how they were found."""

    mask: np.ndarray
    """bool [H, W]."""
    compressed: bool
    """Whether they are only nearly zero."""

    @property
    def share(self) -> float:
        return float(self.mask.mean())


def find_lost(image: np.ndarray) -> Lost:
    """The lost pixels of a picture of which nothing is known.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB.
    """
    level = levels(image)
    for compressed in (False, True):
        mask, around = candidates(level, compressed)
        if _are_lost(mask, around, level, compressed):
            return Lost(mask, compressed)
    return Lost(np.zeros(level.shape, bool), False)


def fill(image: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The picture, its lost pixels guessed from those around, from the edges of an area inwards.

    By Telea, "An image inpainting technique based on the fast marching method", 2004. A guess has 8
    bits and is never zero; where no pixel is left to guess from, all stay as they are.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB; lost: bool [H, W].
    """
    if not lost.any() or lost.all():
        return image
    scale = np.iinfo(image.dtype).max // 255
    eight_bits = (image // scale).astype(np.uint8)
    guess = cv2.inpaint(eight_bits, lost.astype(np.uint8), REACH, cv2.INPAINT_TELEA)
    guess = np.maximum(guess, 1).astype(image.dtype) * image.dtype.type(scale)
    return np.where(lost[..., None], guess, image)


def levels(image: np.ndarray) -> np.ndarray:
    """float32 [H, W]: each pixel's brightest channel, of 255."""
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    return brightest.astype(np.float32) * np.float32(255 / np.iinfo(image.dtype).max)


def candidates(level: np.ndarray, compressed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that are lost if any are, and the mean of what is there around each pixel.

    Args:
      level: of `levels`.
      compressed: whether lost pixels are only nearly zero.

    Returns:
      bool and float32 [H, W].
    """
    black = level == 0
    around = _mean_around(level, ~black)
    if compressed:
        for _ in range(2):
            black = level <= np.minimum(NEARLY_BLACK, DARK * around)
            around = _mean_around(level, ~black)
    return black & ~solid(black), around


def solid(black: np.ndarray) -> np.ndarray:
    """The parts of `black`, bool [H, W], that form large areas, with a margin of 2 pixels."""
    beyond = SOLID // 2 + 1 - DEEP
    padded = cv2.copyMakeBorder(
        black.astype(np.uint8), beyond, beyond, beyond, beyond, cv2.BORDER_CONSTANT, value=1
    )
    return _inside(_grown(cv2.erode(padded, _square(SOLID)), SOLID + 4), beyond)


def _inside(padded: np.ndarray, margin: int) -> np.ndarray:
    return padded[margin:-margin, margin:-margin].astype(bool)


def _grown(area: np.ndarray, edge: int) -> np.ndarray:
    return cv2.dilate(area.astype(np.uint8), _square(edge))


def _square(edge: int) -> np.ndarray:
    return np.ones((edge, edge), np.uint8)


def _mean_around(level: np.ndarray, there: np.ndarray) -> np.ndarray:
    weight = there.astype(np.float32)
    total = cv2.blur(level * weight, (AROUND, AROUND))
    return total / np.maximum(cv2.blur(weight, (AROUND, AROUND)), 1e-3)


def _are_lost(mask: np.ndarray, around: np.ndarray, level: np.ndarray, compressed: bool) -> bool:
    """Whether such pixels are frequent, where the picture is bright too, and a kind of their own:
    noise and shadows have more pixels of a little more light, and have them in the dark."""
    seen = ~_grown(solid(level <= (NEARLY_BLACK / 4 if compressed else 0)), 2 * NEAR + 1).astype(
        bool
    )
    if not (mask & seen).any():
        return False
    bright = seen & (around >= np.median(around[seen]))
    dark = seen & ~bright
    in_bright, in_dark = (
        float(mask[half].mean()) if half.any() else 0.0 for half in (bright, dark)
    )
    between = ~mask & (level <= (DIM * around if compressed else 2))
    least, ratio = (0.05, 4.5) if compressed else (0.002, 3)
    return in_bright >= max(least, 0.25 * in_dark) and in_bright >= ratio * between[bright].mean()
