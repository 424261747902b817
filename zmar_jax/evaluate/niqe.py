"""NIQE, a score of pictures without ground truth; lower is better.

Mittal, Soundararajan, Bovik: Making a "completely blind" image quality analyzer, 2013. How far the
statistics of a picture's patches are from those of natural photographs. `niqe.npz` holds the
latter, as published; `niqe.txt` says whose they are.
"""

import functools
import math
from importlib import resources

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.special import gamma

from zmar_jax.imaging.metrics import grey

PATCH = 96
"""Side of a patch, pixels."""
FEWEST = 2
"""Patches that have a covariance."""
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours whose products are looked at."""
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
"""Squared mean magnitude over mean square, of generalised Gaussians of `_SHAPES`; increasing."""
_FLAT = 1e-9


def fits(height: int, width: int) -> bool:
    """Whether a picture of this size has enough patches."""
    return (height // PATCH) * (width // PATCH) >= FEWEST


def niqe(image: np.ndarray) -> float:
    """How far a picture is from natural photographs: about 3 if it is good, 9 if it is noisy.

    Patches without any texture (black frames, clipped skies) have no statistics and are left out.

    Args:
      image: uint8 [H, W, 3].

    Returns:
      NaN where fewer than two patches have texture.

    Raises:
      ValueError: no such picture, or one with fewer than two patches of 96x96.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    if not fits(*image.shape[:2]):
        raise ValueError(
            f"image must hold two patches of {PATCH}x{PATCH}, got {image.shape[1]}x{image.shape[0]}"
        )
    features = _features(np.round(grey(image)))
    features = features[np.isfinite(features).all(1)]
    if len(features) < FEWEST:
        return math.nan
    mean, covariance = _natural()
    away = features.mean(0) - mean
    between = np.linalg.pinv((covariance + np.cov(features, rowvar=False)) / 2)
    return float(np.sqrt(away @ between @ away))


@functools.cache
def _natural() -> tuple[np.ndarray, np.ndarray]:
    """Mean [36] and covariance [36, 36] of the features of natural photographs."""
    with (
        (resources.files("zmar_jax.evaluate") / "niqe.npz").open("rb") as file,
        np.load(file) as found,
    ):
        return found["mean"], found["covariance"]


def _features(x: np.ndarray) -> np.ndarray:
    """[H, W] of 255 -> [patches, 36]: 18 at full size, and 18 at half."""
    height, width = (size // PATCH * PATCH for size in x.shape)
    x = x[:height, :width]
    halved = _halved(_halved(x, 0), 1)
    return np.concatenate([_of_patches(x, PATCH), _of_patches(halved, PATCH // 2)], 1)


def _halved(x: np.ndarray, axis: int) -> np.ndarray:
    """Half as long: bicubic, with a kernel that is stretched against aliasing, mirrored edges."""
    far = np.array([0.25, 0.75, 1.25, 1.75])  # of the eight inputs around an output, in outputs
    half = np.where(
        far < 1, 1.5 * far**3 - 2.5 * far**2 + 1, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    )
    kernel = np.concatenate([half[::-1], half]) / (2 * half.sum())
    return correlate1d(x, kernel, axis, mode="reflect", origin=-1).take(
        range(0, x.shape[axis], 2), axis
    )


def _of_patches(x: np.ndarray, side: int) -> np.ndarray:
    """[H, W] -> [patches, 18], of the picture less its local mean, over its local deviation."""
    mean, square = (gaussian_filter(a, 7 / 6, radius=3, mode="nearest") for a in (x, x * x))
    x = (x - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
    x[np.abs(x) < _FLAT] = 0  # rounding of a constant area is no texture
    rows, columns = x.shape[0] // side, x.shape[1] // side
    patches = x.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right = _fit(patches)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit(patches * np.roll(patches, shift, (1, 2)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.stack(features, 1)


def _fit(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape and both scales of the asymmetric generalised Gaussian of each patch; NaN if flat."""
    square = np.square(patches)
    with np.errstate(invalid="ignore"):
        left, right = (
            np.sqrt((square * side).sum((1, 2)) / side.sum((1, 2)))
            for side in (patches < 0, patches > 0)
        )
        ratio = left / right
        found = np.abs(patches).mean((1, 2)) ** 2 / square.mean((1, 2))
        found = found * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    nearest = np.searchsorted((_RATIOS[1:] + _RATIOS[:-1]) / 2, found)
    shape = _SHAPES[nearest]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale
