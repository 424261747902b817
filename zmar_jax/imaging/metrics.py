"""PSNR and SSIM as the papers measure them: protocols that differ and must not be mixed.

`zmar`: docs/model.md section 8, "Test"; `validation`: there too, during training; `rf`:
docs/datasets.md.
"""

import dataclasses
import math
from typing import Any, Literal, cast

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

Protocol = Literal["zmar", "validation", "rf"]
PROTOCOLS: tuple[Protocol, ...] = ("zmar", "validation", "rf")
LEAST_EDGE = 11
"""Height and width from which all protocols are defined: their largest window."""


@dataclasses.dataclass(frozen=True)
class Score:
    """psnr: dB, infinite where both are the same; ssim: at most 1; higher is better."""

    psnr: float
    ssim: float


def score(
    restored: np.ndarray, gt: np.ndarray, protocol: Protocol = "zmar", gt_mean: bool = False
) -> Score:
    """Scores one image.

    Args:
      restored: [H, W, 3] RGB, uint8, or float of any range, 1 = white; it is clipped to [0, 1].
      gt: the same shape, uint8, or float in [0, 1].
      gt_mean: scale `restored` to the mean brightness of `gt` first (docs/datasets.md); such scores
        are no match for others.

    Returns:
      NaN for both where a pixel of `restored` is not finite.

    Raises:
      ValueError: not two such images, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol}")
    a, b = _unit(restored, "restored"), _unit(gt, "gt")
    if a.shape != b.shape:
        raise ValueError(f"restored and gt must have one shape, got {a.shape} and {b.shape}")
    if not np.isfinite(a).all():
        return Score(math.nan, math.nan)
    if gt_mean:
        a = match_mean(a, b)
    a8, b8 = _bytes(a), _bytes(b)
    if protocol == "zmar":
        return Score(_psnr(a8, b8, 255), _ssim_uniform(a8, b8))
    if protocol == "validation":
        return Score(_psnr(a8, b8, 255), _ssim_padded(a, b))
    return Score(_psnr(a, b, 1), _ssim_valid(a8, b8))


def match_mean(restored: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """`restored` scaled so that its mean grey is that of `gt`, then clipped; floats [H, W, 3]."""
    mean = grey(restored).mean()
    return np.clip(restored * (grey(gt).mean() / mean), 0, 1) if mean > 0 else restored


def grey(image: np.ndarray) -> np.ndarray:
    # as OpenCV's RGB2GRAY, which the protocol's toolkits use
    return image @ np.array([0.299, 0.587, 0.114])


def _unit(image: np.ndarray, name: str) -> np.ndarray:
    """float64, clipped to [0, 1]; NaN stays."""
    floating = np.issubdtype(image.dtype, np.floating)
    if not (floating or image.dtype == np.uint8) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{name} must be uint8 or float [H, W, 3], got {image.dtype} {image.shape}"
        )
    if min(image.shape[:2]) < LEAST_EDGE:
        raise ValueError(f"{name} must be at least {LEAST_EDGE}x{LEAST_EDGE}, got {image.shape}")
    x = image.astype(np.float64)
    if not floating:
        return x / 255
    # infinite is as broken as NaN: clipping would hide it
    return np.clip(np.where(np.isfinite(x), x, np.nan), 0, 1)


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.round(255 * x).astype(np.uint8)


def _psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    error = np.mean(np.square(a.astype(np.float64) - b))
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def _ssim_uniform(a: np.ndarray, b: np.ndarray) -> float:
    """7x7 uniform window, sample covariance."""
    return _skimage_ssim(a, b)


def _ssim_valid(a: np.ndarray, b: np.ndarray) -> float:
    """11x11 Gaussian window, where it fits into the image; mean over channels."""
    return _skimage_ssim(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


def _skimage_ssim(a: np.ndarray, b: np.ndarray, **options: Any) -> float:
    return float(cast(Any, structural_similarity(a, b, channel_axis=2, **options)))


def _ssim_padded(a: np.ndarray, b: np.ndarray) -> float:
    """11x11 Gaussian window over zero padding, every pixel counted; floats in [0, 1]."""

    def window(x: np.ndarray) -> np.ndarray:
        return cast(Any, gaussian_filter)(x, 1.5, mode="constant", radius=5, axes=(0, 1))

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    covariance = window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (var_a + var_b + c2)))
