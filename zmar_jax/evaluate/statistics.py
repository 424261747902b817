"""Means with their uncertainty."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap(values: Sequence[float], seed: int = 0) -> dict[str, float | None]:
    """`mean`, and `low` and `high`: the 95 % percentile interval of the mean over resampled images.

    All are None where a value is not finite, and the interval where there are fewer than two. But
    the mean is infinite where values are, as the PSNR of equal pictures, and all others finite.
    """
    x = np.asarray(values, np.float64)
    if np.isposinf(x).any() and (np.isfinite(x) | np.isposinf(x)).all():
        return {"mean": math.inf, "low": None, "high": None}
    if not len(x) or not np.isfinite(x).all():
        return {"mean": None, "low": None, "high": None}
    mean = math.fsum(x) / len(x)
    if len(x) < 2:
        return {"mean": mean, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    # in parts: all indices at once would be 8 bytes times 10 000 times the images
    means = [x[rng.integers(len(x), size=(100, len(x)))].mean(1) for _ in range(RESAMPLES // 100)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high)}
