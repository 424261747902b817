"""The photograph to try: one that comes with scikit-image, darkened and with lost pixels."""

from pathlib import Path

import numpy as np
import skimage

from zmar_jax.config import DarkenConfig, MaskConfig
from zmar_jax.data.degrade import darken
from zmar_jax.data.masks import lose_pixels
from zmar_jax.images import read_photo

SEED = 0


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Low and ground truth, uint8 [400, 600, 3], the same at every call.

    The photograph is Rachel Michetti's cup of coffee, CC0; the bundled weights never saw it.
    """
    gt = read_photo(Path(skimage.data.data_dir) / "coffee.png").rgb
    height, width, _ = gt.shape
    low = darken(gt, np.uint32(SEED), DarkenConfig())
    window = (0, 0, height, width)
    return lose_pixels(low, SEED, (height, width), window, MaskConfig()), gt
