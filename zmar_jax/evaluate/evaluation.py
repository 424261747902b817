"""An evaluation from pictures to numbers."""

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.config import to_dict
from zmar_jax.data.hashing import id_seed
from zmar_jax.evaluate.network import Network, Sampling, batches
from zmar_jax.evaluate.pairs import Pairs, Source
from zmar_jax.evaluate.records import RESTORED, Record, Records
from zmar_jax.evaluate.statistics import bootstrap
from zmar_jax.images import Step
from zmar_jax.metrics import Protocol, score
from zmar_jax.weights import Weights

METRICS = ("psnr", "ssim", "bits_per_dim", "psnr_input", "ssim_input", "lost_share")
"""Of each picture; the last three of its input."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How restorations are scored (`metrics.score`)."""

    protocol: Protocol = "zmar"
    gt_mean: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The numbers of a finished evaluation; `records` in the order of the pairs."""

    settings: dict[str, Any]
    records: tuple[Record, ...]
    means: dict[str, dict[str, float | None]]

    @property
    def seconds(self) -> float:
        """A picture's, on average: encoding and restoring, without compiling."""
        return math.fsum(record["seconds"] for record in self.records) / len(self.records)


def settings(
    pairs: Pairs, source: Source, weights: Weights, sampling: Sampling, scoring: Scoring
) -> dict[str, Any]:
    """All that the numbers depend on but for the pictures, whose digests are in the records."""
    masks = source.masks
    lost: dict[str, Any] = {"masks": masks.source}
    if masks.source == "procedural":
        lost["lost_shares"] = list(masks.share)
    elif masks.source != "none":
        lost["masks"] = f"folder {Path(masks.source).name}"
    darkened = pairs.kind == "photographs"
    return {
        "zmar_jax": version("zmar-jax"),
        "weights": weights.checksum,
        "model": to_dict(weights.config),
        "data": pairs.name,
        "kind": pairs.kind,
        **lost,
        **({"darken": to_dict(source.darken)} if darkened else {}),
        **({"sdsd_frames": source.sdsd_frames} if pairs.name.startswith("sdsd") else {}),
        **dataclasses.asdict(scoring),
        **dataclasses.asdict(sampling),
    }


def run(
    pairs: Pairs,
    network: Network,
    records: Records,
    sampling: Sampling,
    scoring: Scoring,
    step: Step = lambda source, target, error: None,
) -> tuple[Record, ...]:
    """Restores and scores whatever `records` has not, batch by batch.

    Returns:
      A record for each pair, in order: id, height, width, METRICS, and seconds.

    Raises:
      DataError, ImageError, EvaluationError: a picture cannot be read, or a result not written.
    """
    found = [records.find(*key) for key in zip(pairs.ids, pairs.digests, strict=True)]
    for batch in batches(pairs.sizes, network.rows):
        # all of a batch again, even if some are done: the same batch rounds the same way
        if missing := [i for i in batch if found[i] is None]:
            computed = _batch(pairs, batch, network, sampling)
            for i in missing:
                found[i] = _finish(pairs, i, records, scoring, computed[i])
        for i in batch:
            step(Path(pairs.ids[i]), records.folder / RESTORED, None)
    return tuple(record for record in found if record)


def evaluation(settings: dict[str, Any], records: Sequence[Record]) -> Evaluation:
    """Means over the pictures; None where one of them has none, as NaN has no mean."""
    means = {
        name: bootstrap([math.nan if r[name] is None else r[name] for r in records])
        for name in METRICS
    }
    return Evaluation(settings, tuple(records), means)


def not_finite(found: Evaluation) -> list[str]:
    """Ids of the pictures whose restoration has pixels that are not finite."""
    return [record["id"] for record in found.records if record["ssim"] is None]


@dataclasses.dataclass(frozen=True)
class _Computed:
    low: np.ndarray
    gt: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None
    bits_per_dim: float
    seconds: float


def _batch(
    pairs: Pairs, batch: Sequence[int], network: Network, sampling: Sampling
) -> dict[int, _Computed]:
    lows, gts = zip(*(pairs.read(i) for i in batch), strict=True)
    before = network.seconds
    features = network.encode(lows)
    restored = network.restore(lows, sampling, features)
    seconds = (network.seconds - before) / len(batch)
    seeds = [id_seed(sampling.seed, pairs.ids[i]) for i in batch]
    bits = network.bits_per_dim(gts, seeds, features)
    several = sampling.members > 1
    return {
        i: _Computed(low, gt, mean, std if several else None, b, seconds)
        for i, low, gt, (mean, std), b in zip(batch, lows, gts, restored, bits, strict=True)
    }


def _finish(pairs: Pairs, i: int, records: Records, scoring: Scoring, done: _Computed) -> Record:
    shown = np.round(255 * np.nan_to_num(done.mean)).astype(np.uint8)
    # zmar scores the file; rf scores what was not rounded yet
    scored = shown if scoring.protocol == "zmar" and np.isfinite(done.mean).all() else done.mean
    of_output, of_input = (score(x, done.gt, **vars(scoring)) for x in (scored, done.low))
    values = {
        "height": done.gt.shape[0],
        "width": done.gt.shape[1],
        "psnr": of_output.psnr,
        "ssim": of_output.ssim,
        "bits_per_dim": done.bits_per_dim,
        "psnr_input": of_input.psnr,
        "ssim_input": of_input.ssim,
        "lost_share": float(lost_pixels(done.low).mean()),
        "seconds": round(done.seconds, 4),
    }
    std = None if done.std is None else 255 * done.std.mean(-1)
    return records.add(pairs.ids[i], pairs.digests[i], shown, std, values)


def lost_pixels(low: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that are zero in all channels, whether lost or only black."""
    return np.all(low == 0, axis=-1)
