"""How real dark pictures differ from their ground truths, beside the pictures of training.

For every pair: the dark picture as a model sees it (exposed), against the ground truth, in blocks
of 12 pixels, which leaves no noise. Settings of `data.darken.night` are right where rows agree.

* contrast: the slope of the truth's logarithmic brightness against what is seen; above 1 the truth
  has more contrast;
* colour: the same slope of what a colour differs from grey by, of its brightness; below 1 the dark
  picture has too strong colours;
* cast: mean difference of a channel from grey, in what is seen.

$ python scripts/night_statistics.py my_pairs/ --photos photos/train
$ python scripts/night_statistics.py --photos photos/train --night '{"contrast": [0.65, 1.25]}'
"""

import json
from pathlib import Path

import cv2
import numpy as np
import tyro
from rich.progress import track
from tyro.conf import Positional

from zmar_jax.config import ConfigError, DarkenConfig, MaskConfig, from_dict, load_config
from zmar_jax.config.data import NightConfig
from zmar_jax.data import DataError
from zmar_jax.evaluate.pairs import Source, open_pairs
from zmar_jax.imaging.exposure import as_seen

BLOCK = 12
NAMES = ("contrast", "colour", "cast")


def blocks(image: np.ndarray) -> np.ndarray:
    height, width = (n // BLOCK for n in image.shape[:2])
    return cv2.resize(image.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_AREA)


def statistics(low: np.ndarray, gt: np.ndarray, brightness: float) -> tuple[float, ...]:
    """The numbers of `NAMES` of a pair, uint8 [H, W, 3]."""
    seen, truth = blocks(as_seen(low, brightness).image), blocks(gt)
    grey, grey_truth = seen.mean(-1), truth.mean(-1)
    contrast = slope(np.log(grey + 0.02), np.log(grey_truth + 0.02))
    colour, colour_truth = (
        x / np.maximum(g, 0.02)[..., None] - 1 for x, g in ((seen, grey), (truth, grey_truth))
    )
    means = colour.mean((0, 1))
    strength = slope(colour - means, colour_truth - colour_truth.mean((0, 1)))
    return contrast, strength, float(np.abs(means).mean())


def slope(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max((x * x).sum(), 1e-9))


def row(title: str, source: Source, brightness: float) -> str:
    """Quartiles over a source's pairs, as a row of a Markdown table."""
    pairs = open_pairs(source)
    found = []
    for i in track(range(len(pairs.ids)), title):
        low, gt = pairs.read(i)
        if gt is None:
            raise DataError(f"{source.data}: no ground truths; give a folder of pairs")
        found.append(statistics(low, gt, brightness))
    quartiles = np.quantile(found, (0.25, 0.5, 0.75), axis=0).T
    cells = [title, *(f"{b:.2f} ({a:.2f} to {c:.2f})" for a, b, c in quartiles)]
    return f"| {' | '.join(cells)} |"


def main(
    pairs: Positional[tuple[Path, ...]], /, photos: Path | None = None, night: str = "{}"
) -> None:
    """Prints a table: medians, and quartiles in brackets.

    Args:
      pairs: Folders of pairs of dark and bright pictures.
      photos: A folder of clean photographs, darkened as in training.
      night: What `data.darken.night` has otherwise, as JSON.
    """
    brightness = load_config("night").model.brightness
    unmasked = MaskConfig(source="none")
    sources = {p.name: Source(str(p), masks=unmasked) for p in pairs}
    if photos:
        settings = {"bright_share": 0.0, "frames": 0.0, **json.loads(night)}
        darken = DarkenConfig(night=from_dict(NightConfig, settings, "--night"))
        sources["training"] = Source(str(photos), masks=unmasked, darken=darken, clean=True)
    rows = [row(title, source, brightness) for title, source in sources.items()]
    print("\n".join([" | ".join(["| ", *NAMES]) + " |", "|---" * (1 + len(NAMES)) + "|", *rows]))


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, ConfigError, json.JSONDecodeError) as e:
        raise SystemExit(f"error: {e}") from None
