#!/usr/bin/env python3
"""Draws the pictures of the bundled model for docs/ and its card.

Needs matplotlib, for one of its photographs (`pip install '.[dev]'`).

$ python scripts/draw_examples.py docs
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.cbook
import numpy as np
import skimage
import tyro
from tyro.conf import Positional

from zmar_jax import load_restorer
from zmar_jax.config import MaskConfig, NightConfig
from zmar_jax.data.masks import apply_mask, draw_mask
from zmar_jax.data.night import draw_scene, night, whole
from zmar_jax.data.sample import sample
from zmar_jax.imaging.images import read_photo
from zmar_jax.restore import Restorer

HEIGHT, MARGIN = 200, 4
NIGHT = NightConfig(bright_share=0.0, frames=0.0, dimming=(6.0, 15.0))
GRACE_HOPPER = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)


class Row(NamedTuple):
    """A photograph, which night falls on it, and whether it loses pixels."""

    photo: str
    seed: int
    lost: bool


# The first three are coffee, rocket and Grace Hopper; none was in the training.
ROWS = (
    Row("coffee.png", 3, False),
    Row("rocket.jpg", 5, True),
    Row(GRACE_HOPPER, 6, False),
    Row("coffee.png", 11, True),
    Row("rocket.jpg", 13, False),
    Row(GRACE_HOPPER, 17, True),
)
FACTORS = (0.7, 1.0, 1.4)


def contact_sheet(restorer: Restorer) -> np.ndarray:
    """Two examples in a row: input, restored and truth of each."""
    strips = []
    for row in ROWS:
        low, gt = dark(row)
        strips.append(side_by_side([low, restorer(low, heat=0.0, seed=0), gt]))
    return stacked([side_by_side(strips[i : i + 2], 4 * MARGIN) for i in range(0, len(ROWS), 2)])


def brightness_picture(restorer: Restorer) -> np.ndarray:
    """The sample, and its restorations from darker to brighter."""
    low, _ = sample(lost=False)
    restored = [restorer(low, heat=0.0, seed=0, brightness=factor) for factor in FACTORS]
    return side_by_side([low, *restored])


def dark(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The photograph at night, and as it is, uint8 [400, W, 3]."""
    gt = scaled(read_photo(Path(skimage.data.data_dir) / row.photo).rgb, 400)
    size = gt.shape[:2]
    lost = draw_mask(row.seed, size, MaskConfig()) if row.lost else None
    low, gt = night(gt, draw_scene(row.seed, NIGHT), whole(*size), lost)
    return (low if lost is None else apply_mask(low, lost)), gt


def scaled(image: np.ndarray, height: int) -> np.ndarray:
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def side_by_side(images: list[np.ndarray], margin: int = MARGIN) -> np.ndarray:
    images = [scaled(image, HEIGHT) for image in images]
    gap = np.full((HEIGHT, margin, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], 1)


def stacked(strips: list[np.ndarray]) -> np.ndarray:
    width = max(strip.shape[1] for strip in strips)
    wide = [
        np.pad(s, ((0, MARGIN), (0, width - s.shape[1]), (0, 0)), constant_values=255)
        for s in strips
    ]
    return np.concatenate(wide)[:-MARGIN]


def main(folder: Positional[Path], /, checkpoint: Path | None = None) -> None:
    """Draws contact.jpg and brightness.jpg.

    Args:
      folder: Where they go.
      checkpoint: Weights; the bundled ones if not given.
    """
    restorer = load_restorer(checkpoint)
    for name, image in (
        ("contact.jpg", contact_sheet(restorer)),
        ("brightness.jpg", brightness_picture(restorer)),
    ):
        target = folder / name
        if not cv2.imwrite(str(target), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]):
            raise OSError(f"{target}: cannot be written; does the folder exist?")
        print(target)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
