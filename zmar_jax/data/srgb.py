"""The sRGB curve (IEC 61966-2-1)."""

import numpy as np


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values, both in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """sRGB values of linear light, both in [0, 1]; above 1, the curve goes on."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
