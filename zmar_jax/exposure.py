"""Dark pictures brightened until their brightest pixels are white, before a model sees them.

Not in the paper. Training sees crops, and a crop does not show how bright its picture can get; so
the whole picture is measured, and the model need not guess the exposure.
"""

import numpy as np

SAMPLE = 1 << 18
"""Pixels that `sample` leaves, at most."""


def expose(image: np.ndarray, white_point: float) -> np.ndarray:
    """The whole picture, as a model with this `ModelConfig.white_point` is to see it.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB.
      white_point: as of `gain`; 0 leaves the picture as it is.

    Returns:
      The same shape and dtype. Zeros, and only these, are zero.
    """
    return apply_gain(image, gain(image, white_point)) if white_point else image


def gain(image: np.ndarray, white_point: float) -> float:
    """The factor on linear light that makes the picture's white point white.

    Args:
      image: uint8 or uint16 [H, W, 3] RGB; pixels that are zero are lost and do not count.
      white_point: in (0, 1], the share of the pixels whose brightest channel is at most at the
        white point.

    Returns:
      1 or more; 1 where all pixels are lost.
    """
    full = np.iinfo(image.dtype).max
    brightest_channel = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    counts = np.bincount(brightest_channel.ravel(), minlength=full + 1)
    counts[0] = 0
    up_to = np.cumsum(counts)
    white = np.searchsorted(up_to, white_point * up_to[-1])
    return float(1 / to_linear(white / full)) if up_to[-1] else 1.0


def apply_gain(image: np.ndarray, factor: float) -> np.ndarray:
    """The picture with its linear light times a factor, and clipped.

    Args:
      image: uint8 or uint16 [..., 3] RGB.

    Returns:
      The same shape and dtype. Zeros, and only these, are zero.
    """
    full = np.iinfo(image.dtype).max
    values = np.arange(full + 1)
    bright = np.rint(full * to_srgb(np.minimum(factor * to_linear(values / full), 1)))
    return np.maximum(bright, values > 0).astype(image.dtype)[image]


def sample(image: np.ndarray) -> np.ndarray:
    """The pixels [h, w, 3] of [H, W, 3] on a regular grid, `SAMPLE` at most or all."""
    height, width = image.shape[:2]
    stride = int(np.ceil(np.sqrt(height * width / SAMPLE)))
    return image[::stride, ::stride]


def brightest(image: np.ndarray) -> np.ndarray:
    """The pixels of which one is the brightest, [1, n, 3], whatever gain each channel has.

    Of uint8 or uint16 [H, W, 3] those that are among the brightest 1 % in a channel, as noise may
    change their order; more where they are equal.
    """
    chosen = np.zeros(image.shape[:2], bool)
    for channel in np.moveaxis(image, -1, 0):
        at_least = np.bincount(channel.ravel())[::-1].cumsum()[::-1]
        chosen |= channel >= np.flatnonzero(at_least >= 0.01 * channel.size)[-1]
    return image[None, chosen]


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values, both in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """sRGB values of linear light, both in [0, 1]."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
