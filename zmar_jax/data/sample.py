"""The photograph to try: one that comes with scikit-image, at night and with lost pixels."""

from pathlib import Path

import numpy as np
import skimage

from zmar_jax.config import MaskConfig, NightConfig
from zmar_jax.data.masks import apply_mask, draw_mask
from zmar_jax.data.night import draw_scene, night, whole
from zmar_jax.imaging.images import read_photo

TITLE = "a rocket at night"
SEED = 2
NIGHT = NightConfig(
    tones=(1.0, 0.0, 0.0),
    dimming=(6.0, 7.0),
    contrast=(0.9, 1.0),
    saturation=(1.0, 1.0),
    bright_share=0.0,
    highlights=1.0,
    lamps=0.0,
    cast=0.15,
    strong_cast_share=0.0,
    noise_floor=(0.8, 1.2),
    hot=1.0,
    jpeg=0.0,
    frames=0.0,
)
"""As dark as real night photographs are; lamps shine."""
MASKS = MaskConfig(share=(0.1, 0.14))


def sample(lost: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Low and ground truth, uint8 [400, 600, 3], the same at every call.

    The photograph is SpaceX's rocket on its launch pad, CC0; the bundled weights never saw it.

    Args:
      lost: whether pixels are lost.
    """
    gt = read_photo(Path(skimage.data.data_dir) / "rocket.jpg").rgb[-400:, :600]
    size = gt.shape[:2]
    low, _ = night(gt, draw_scene(SEED, NIGHT), whole(*size))
    return (apply_mask(low, draw_mask(SEED, size, MASKS)) if lost else low), gt
