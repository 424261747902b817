"""Tiny folders in the layouts in which the six benchmarks are handed out."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (16, 24)
"""Height and width of every PNG."""

LAYOUTS = {
    "lol_v1": {
        "train": ("our485/low/{}.png", "our485/high/{}.png", ("1", "22", "3")),
        "test": ("eval15/low/{}.png", "eval15/high/{}.png", ("1", "493")),
    },
    "lol_v1 rf": {
        "train": ("Train/input/{}.png", "Train/target/{}.png", ("1", "22", "3")),
        "test": ("Test/input/{}.png", "Test/target/{}.png", ("1", "493")),
    },
    "lol_v2_real": {
        "train": (
            "Real_captured/Train/Low/low{}.png",
            "Real_captured/Train/Normal/normal{}.png",
            ("00001", "00002", "00100"),
        ),
        "test": (
            "Real_captured/Test/Low/low{}.png",
            "Real_captured/Test/Normal/normal{}.png",
            ("00690",),
        ),
    },
    "lol_v2_real same": {
        "train": (
            "Real_captured/Train/Low/{}.png",
            "Real_captured/Train/Normal/{}.png",
            ("00001", "00002", "00100"),
        ),
        "test": ("Real_captured/Test/Low/{}.png", "Real_captured/Test/Normal/{}.png", ("00690",)),
    },
    "lol_v2_synthetic": {
        "train": ("Synthetic/Train/Low/{}.png", "Synthetic/Train/Normal/{}.png", ("r008t", "ra1")),
        "test": ("Synthetic/Test/Low/{}.png", "Synthetic/Test/Normal/{}.png", ("r009t",)),
    },
    "sdsd_indoor": {
        "train": (
            "indoor_static_np/input/{}.npy",
            "indoor_static_np/GT/{}.npy",
            ("pair10/0001", "pair10/0002", "pair2/0001"),
        ),
        "test": (
            "indoor_static_np/input/{}.npy",
            "indoor_static_np/GT/{}.npy",
            ("pair1/0001", "pair1/0002", "pair1_2/0001", "pair21/0001"),
        ),
    },
    "sdsd_outdoor": {
        "train": (
            "outdoor_static_np/input/{}.npy",
            "outdoor_static_np/GT/{}.npy",
            ("MVI_0899/0001", "MVI_0899_2/0001"),
        ),
        "test": (
            "outdoor_static_np/input/{}.npy",
            "outdoor_static_np/GT/{}.npy",
            ("MVI_0898/0001", "MVI_0898_2_cut/0001", "MVI_1032/0001"),
        ),
    },
    "sid": {
        "train": (
            "short_sid2/{}.npy",
            "long_sid2/{scene}/{scene}_00_10s.npy",
            ("00001/00001_00_0.04s", "00001/00001_00_0.1s", "20001/20001_00_0.1s"),
        ),
        "test": (
            "short_sid2/{}.npy",
            "long_sid2/{scene}/{scene}_00_10s.npy",
            ("10003/10003_00_0.04s",),
        ),
    },
}
"""Name and layout -> split -> where low and gt of an id are, and ids in the order expected."""


def make(key: str, root: Path) -> str:
    """Writes the folder; the benchmark's name."""
    for split, (low, gt, ids) in LAYOUTS[key].items():
        for id_ in ids:
            for kind, template in (("low", low), ("gt", gt)):
                path = root / template.format(id_, scene=id_.partition("/")[0])
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, picture(f"{split}/{id_ if kind == 'low' else path.name}", kind))
    return key.partition(" ")[0]


def picture(seed: str, kind: str) -> np.ndarray:
    """uint8 [16, 24, 3] that is another for each name."""
    rng = np.random.default_rng(list(seed.encode()))
    return rng.integers(0, 40 if kind == "low" else 256, (*SIZE, 3), np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        Image.fromarray(image).save(path)
