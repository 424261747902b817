"""What is measured of a picture, with and without ground truth, and how the numbers are shown."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zmar_jax.evaluate.niqe import niqe
from zmar_jax.imaging.metrics import Protocol, score

INPUT = "_input"
"""Behind the name of a number that is the dark picture's own."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How restorations are compared with ground truths (`metrics.score`)."""

    protocol: Protocol = "zmar"
    gt_mean: bool = False


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of each picture, and how it is shown."""

    key: str
    label: str
    digits: int
    unit: str = ""
    factor: float = 1


@dataclasses.dataclass(frozen=True)
class Measures:
    """All that is measured of a picture, and where it is shown."""

    every: tuple[Measure, ...]
    columns: tuple[str, ...]
    """Of the report."""
    facts: tuple[str, ...]
    """What a reader wants first."""
    main: tuple[tuple[str, int], tuple[str, int]]
    """The table of means has these two, of restorations and of inputs, with so many digits. The
    second is None only where a restoration has pixels that are not finite."""
    plot: tuple[str, str, str]
    """Title, and what is drawn to the right and upwards."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(measure.key for measure in self.every)

    def __getitem__(self, key: str) -> Measure:
        return self.every[self.keys.index(key)]


_LOST = Measure("lost_share", "pixels that are zero, %", 1, factor=100)
WITH_TRUTH = Measures(
    (
        Measure("psnr", "PSNR", 2, " dB"),
        Measure("ssim", "SSIM", 4),
        Measure("bits_per_dim", "bits per dimension", 3),
        Measure("psnr_input", "PSNR of the input", 2, " dB"),
        Measure("ssim_input", "SSIM of the input", 4),
        _LOST,
    ),
    columns=("psnr", "ssim", "bits_per_dim", "psnr_input", "lost_share"),
    facts=("psnr", "ssim", "bits_per_dim", "psnr_input"),
    main=(("psnr", 2), ("ssim", 3)),
    plot=("PSNR against lost pixels", "lost_share", "psnr"),
)
WITHOUT_TRUTH = Measures(
    (
        Measure("niqe", "NIQE", 2),
        Measure("brightness", "brightness", 1, " of 255"),
        Measure("niqe_input", "NIQE of the input", 2),
        Measure("brightness_input", "brightness of the input", 1, " of 255"),
        _LOST,
    ),
    columns=("niqe", "brightness", "niqe_input", "brightness_input", "lost_share"),
    facts=("niqe", "niqe_input", "brightness", "brightness_input"),
    main=(("niqe", 2), ("brightness", 1)),
    plot=("Brightness after against before", "brightness_input", "brightness"),
)


def value_of(record: Mapping[str, Any], key: str) -> float:
    """A number of a picture's record, in which what JSON cannot hold is None: infinite where the
    record says so, else NaN."""
    if record[key] is None:
        return math.inf if key in record.get("infinite", ()) else math.nan
    return record[key]


def measures_of(kind: str) -> Measures:
    """What is measured of pictures of this kind (`pairs.Kind`)."""
    return WITHOUT_TRUTH if kind == "dark" else WITH_TRUTH


def against_truth(
    restored: np.ndarray, shown: np.ndarray, low: np.ndarray, gt: np.ndarray, scoring: Scoring
) -> dict[str, float]:
    """Scores of a restoration, float of 1 = white, and of its input.

    Args:
      shown: the same restoration as it is written, uint8.
    """
    # zmar scores the file; rf scores what was not rounded yet
    scored = shown if scoring.protocol == "zmar" and np.isfinite(restored).all() else restored
    output, before = (score(x, gt, **vars(scoring)) for x in (scored, low))
    return {
        "psnr": output.psnr,
        "ssim": output.ssim,
        "psnr_input": before.psnr,
        "ssim_input": before.ssim,
    }


def without_truth(restored: np.ndarray, shown: np.ndarray, low: np.ndarray) -> dict[str, float]:
    """NIQE and mean brightness of 255, of a restoration and of its input; as `against_truth`."""
    finite = bool(np.isfinite(restored).all())
    return {
        "niqe": niqe(shown) if finite else math.nan,
        "brightness": float(shown.mean()) if finite else math.nan,
        "niqe_input": niqe(low),
        "brightness_input": float(low.mean()),
    }


def zero_pixels(low: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that are zero in all channels, whether lost or only black."""
    return np.all(low == 0, axis=-1)
