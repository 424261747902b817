"""A chain of classical filters for dark photographs: fill, balance, brighten, equalise, denoise.

Pictures are float in [0, 1], sRGB, [H, W, 3], unless said otherwise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.optimize import brentq, minimize_scalar
from skimage import exposure, restoration

from zmar_jax.data.srgb import to_linear, to_srgb

GAINS = (1.0, 100.0)
CURVES = (0.01, 1e4)


@dataclasses.dataclass(frozen=True)
class Chain:
    """The settings of a chain; a field's choices are in `CHOICES`."""

    fill: str = "median"
    brighten: str = "gamma mean"
    """`gain`: the same factor on linear light for all; `mean`: to a mean grey; `white`: a factor
    that makes the brightest white; `gamma`: a power for all; `gamma mean`: a power that leads to a
    mean grey; `gain gamma`: a factor for all, then such a power; `log mean`: a logarithm that leads
    to a mean grey; `clahe`: adaptive equalisation alone."""
    level: float = 0.42
    """The mean grey."""
    factor: float = 10.0
    """Of `gain` and `gain gamma`; the power of `gamma` is 1/log2 of it."""
    quantile: float = 0.999
    """Of `white`: the share of pixels whose brightest channel is below it."""
    balance: float = 0.0
    """How far the means of the channels are brought together, in linear light; 1 is grey."""
    clahe: float = 0.0
    """Clip limit of an adaptive equalisation after brightening; 0 is none."""
    denoise: str = "none"
    """`tv`, `bilateral`, `nlm`: scikit-image's non-local means; `nlm colour`: OpenCV's, which
    treats colour and light apart."""
    strength: float = 0.05


CHOICES: dict[str, tuple[Any, ...]] = {
    "brighten": ("gain", "mean", "white", "gamma", "gamma mean", "gain gamma", "log mean", "clahe"),
    "level": (0.25, 0.3, 0.33, 0.36, 0.39, 0.42, 0.45, 0.48, 0.52, 0.56),
    "factor": (1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 10.0, 13.0, 17.0, 25.0),
    "quantile": (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0),
    "balance": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "clahe": (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    "denoise": ("none", "tv", "bilateral", "nlm", "nlm colour"),
    "strength": (0.01, 0.02, 0.035, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3),
    "fill": ("none", "median", "nearest", "telea", "biharmonic"),
}


def fill(low: np.ndarray, method: str) -> np.ndarray:
    """The picture in [0, 1], its lost pixels (all channels zero) guessed from their neighbours."""
    x, lost = low / 255, (low == 0).all(-1)
    if method == "none" or not lost.any() or lost.all():
        return x
    if method == "telea":
        return cv2.inpaint(low, lost.astype(np.uint8), 5, cv2.INPAINT_TELEA) / 255
    if method == "biharmonic":
        return np.clip(
            restoration.inpaint_biharmonic(x, lost, channel_axis=-1, split_into_regions=True), 0, 1
        )
    if method == "nearest":
        nearest = distance_transform_edt(lost, return_distances=False, return_indices=True)
        return x[tuple(cast(Any, nearest))]
    while lost.any():  # from the edges of what is lost inwards
        padded = np.pad(np.where(lost[..., None], np.nan, x), ((2, 2), (2, 2), (0, 0)))
        padded[:2], padded[-2:], padded[:, :2], padded[:, -2:] = (np.nan,) * 4
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (0, 1))
        known = np.pad(~lost, 2)
        reached = lost & np.lib.stride_tricks.sliding_window_view(known, (5, 5)).any((2, 3))
        x[reached] = np.nanmedian(windows[reached], (-2, -1))
        lost = lost & ~reached
    return x


def brighten(x: np.ndarray, chain: Chain) -> np.ndarray:
    """The picture brightened as `chain.brighten` says, in [0, 1]."""
    x, level = balanced(x, chain.balance), chain.level
    some = x[::4, ::4]  # enough to tell a mean
    match chain.brighten:
        case "gain":
            x = with_gain(x, chain.factor)
        case "gamma":
            x = x ** (1 / np.log2(chain.factor))
        case "mean":
            x = with_gain(x, _root(lambda g: with_gain(some, g).mean() - level, GAINS))
        case "white":
            white = np.quantile(x.max(-1), chain.quantile, keepdims=True)
            x = with_gain(x, _root(lambda g: with_gain(white, g).item() - 0.999, GAINS))
        case "gamma mean" | "gain gamma":
            if chain.brighten == "gain gamma":
                x, some = with_gain(x, chain.factor), with_gain(some, chain.factor)
            x = x ** (1 / _root(lambda g: (some ** (1 / g)).mean() - level, GAINS))
        case "log mean":
            x = _log(x, _root(lambda a: _log(some, a).mean() - level, CURVES))
    clip = chain.clahe or (0.01 if chain.brighten == "clahe" else 0)
    # rounding may lead above 1, which it refuses
    return exposure.equalize_adapthist(np.clip(x, 0, 1), clip_limit=clip) if clip else x


def balanced(x: np.ndarray, share: float) -> np.ndarray:
    """sRGB whose channels have been brought nearer to one mean, in linear light."""
    if not share:
        return x
    light = to_linear(x)
    means = np.maximum(light.mean((0, 1)), 1e-6)
    return np.clip(to_srgb(light * (means.mean() / means) ** share), 0, 1)


def with_gain(x: np.ndarray, gain: float) -> np.ndarray:
    """sRGB in [0, 1] times a factor on its linear light."""
    return np.clip(to_srgb(to_linear(x) * gain), 0, 1)


def _log(x: np.ndarray, bend: float) -> np.ndarray:
    return np.log1p(bend * x) / np.log1p(bend)


def _root(f: Callable[[float], float], bounds: tuple[float, float]) -> float:
    low, high = bounds
    if f(low) >= 0:
        return low
    return high if f(high) <= 0 else cast(float, brentq(f, low, high, xtol=1e-3))


def denoise(x: np.ndarray, chain: Chain) -> np.ndarray:
    strength = chain.strength
    match chain.denoise:
        case "tv":
            return restoration.denoise_tv_chambolle(x, strength, channel_axis=-1)
        case "bilateral":
            return cv2.bilateralFilter(x.astype(np.float32), 9, strength, 3)
        case "nlm":
            return restoration.denoise_nl_means(
                x, 5, 6, 0.8 * strength, sigma=strength, channel_axis=-1
            )
        case "nlm colour":
            x8, h = np.round(255 * x).astype(np.uint8), 255 * strength
            return cv2.fastNlMeansDenoisingColored(x8, None, h, h, 5, 13) / 255
    return x


def apply(x: np.ndarray, chain: Chain) -> np.ndarray:
    return np.clip(denoise(brighten(x, chain), chain), 0, 1)


def apply_knowing(x: np.ndarray, gt: np.ndarray, chain: Chain) -> np.ndarray:
    """The chain with the gain that gives the highest PSNR: no program could know it."""

    def error(log_gain: float) -> float:
        return float(np.square(with_gain(x, np.exp(log_gain)) - gt / 255).mean())

    best = cast(Any, minimize_scalar(error, bounds=np.log(GAINS), method="bounded")).x
    chosen = dataclasses.replace(chain, brighten="gain", factor=float(np.exp(best)), clahe=0.0)
    return apply(x, chosen)
