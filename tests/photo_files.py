"""Small photographs of several kinds in a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 48)


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write_photos(folder: Path, count: int = 12) -> Path:
    """`count` PNG files, and one each that is turned, grey, deep, and deeper in the folder."""
    (folder / "deep").mkdir(parents=True)
    for i in range(count):
        Image.fromarray(pixels(i)).save(folder / f"{i:03}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels(100)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(pixels(101)[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels(102)[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(pixels(103, (41, 43))).save(folder / "deep" / "odd.jpg")
    return folder
