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
from zmar_jax.evaluate.measures import (
    Scoring,
    against_truth,
    measures_of,
    value_of,
    without_truth,
    zero_pixels,
)
from zmar_jax.evaluate.network import Network, Sampling, batches
from zmar_jax.evaluate.pairs import Pairs, Source
from zmar_jax.evaluate.records import RESTORED, EvaluationError, Record, Records
from zmar_jax.evaluate.statistics import bootstrap
from zmar_jax.imaging.images import Step
from zmar_jax.weights import Weights


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
        **({} if pairs.kind == "dark" else dataclasses.asdict(scoring)),
        **{**dataclasses.asdict(sampling), "views": len(sampling.views)},
    }


def share(pairs: Pairs, network: Network, process: int = 0, count: int = 1) -> list[list[int]]:
    """The batches of one of several processes; what is in a batch does not depend on their count,
    so that it rounds the same way."""
    return batches(pairs.sizes, network.rows, network.config.padded)[process::count]


def run(
    pairs: Pairs,
    network: Network,
    records: Records,
    sampling: Sampling,
    scoring: Scoring,
    mine: Sequence[Sequence[int]],
    step: Step = lambda source, target, error: None,
) -> None:
    """Restores and scores whatever `records` has not, batch by batch.

    Args:
      mine: the batches of this process (`share`).

    Raises:
      DataError, ImageError, EvaluationError: a picture cannot be read, or a result not written.
      MemoryLimitError: one does not fit into memory; nothing is computed then.
    """
    todo = [i for batch in mine for i in batch if _record(pairs, records, i) is None]
    network.check([pairs.ids[i] for i in todo], [pairs.sizes[i] for i in todo])
    left = set(todo)
    for batch in mine:
        # all of a batch again, even if some are done: the same batch rounds the same way
        if missing := [i for i in batch if i in left]:
            computed = _batch(pairs, batch, network, sampling)
            for i in missing:
                _finish(pairs, i, records, scoring, computed[i])
        for i in batch:
            step(Path(pairs.ids[i]), records.folder / RESTORED, None)


def collect(pairs: Pairs, records: Records) -> tuple[Record, ...]:
    """A record for each pair, in order: id, height, width, `measures.Measures.keys`, and seconds.

    Raises:
      EvaluationError: some have none.
    """
    found = {i: _record(pairs, records, i) for i in range(len(pairs.ids))}
    if missing := [pairs.ids[i] for i, record in found.items() if record is None]:
        raise EvaluationError(
            f"{records.folder}: {len(missing)} picture(s) of other hosts are not there, as "
            f"{missing[0]}; --out must be a folder that all hosts see, or a bucket"
        )
    return tuple(record for record in found.values() if record)


def _record(pairs: Pairs, records: Records, i: int) -> Record | None:
    return records.find(pairs.ids[i], pairs.digests[i])


def summarize(settings: dict[str, Any], records: Sequence[Record]) -> Evaluation:
    """Means over the pictures. The mean is None where a picture has no number."""
    means = {
        name: bootstrap([value_of(record, name) for record in records])
        for name in measures_of(settings["kind"]).keys
    }
    return Evaluation(settings, tuple(records), means)


def not_finite(found: Evaluation) -> list[str]:
    """Ids of the pictures whose restoration has pixels that are not finite."""
    key = measures_of(found.settings["kind"]).main[1][0]
    return [record["id"] for record in found.records if record[key] is None]


def without_niqe(found: Evaluation) -> list[str]:
    """Ids of the dark pictures that have too little texture for a NIQE, before or after."""
    finite = [r for r in found.records if r.get("brightness") is not None]
    return [r["id"] for r in finite if None in (r["niqe"], r["niqe_input"])]


@dataclasses.dataclass(frozen=True)
class _Computed:
    low: np.ndarray
    gt: np.ndarray | None
    mean: np.ndarray
    std: np.ndarray | None
    bits_per_dim: float | None
    seconds: float


def _batch(
    pairs: Pairs, batch: Sequence[int], network: Network, sampling: Sampling
) -> dict[int, _Computed]:
    lows, gts = zip(*(pairs.read(i) for i in batch), strict=True)
    before = network.seconds
    seen = network.see(lows)
    features = network.encode(seen)
    restored = network.restore(seen, sampling, features)
    seconds = (network.seconds - before) / len(batch)
    seeds = [id_seed(sampling.seed, pairs.ids[i]) for i in batch]
    truths = [gt for gt in gts if gt is not None]
    bits = network.bits_per_dim(truths, seeds, features) if truths else [None] * len(batch)
    several = sampling.samples > 1
    return {
        i: _Computed(low, gt, mean, std if several else None, b, seconds)
        for i, low, gt, (mean, std), b in zip(batch, lows, gts, restored, bits, strict=True)
    }


def _finish(pairs: Pairs, i: int, records: Records, scoring: Scoring, done: _Computed) -> None:
    shown = np.round(255 * np.nan_to_num(done.mean)).astype(np.uint8)
    if done.gt is None:
        scores = without_truth(done.mean, shown, done.low)
    else:
        scores = {
            **against_truth(done.mean, shown, done.low, done.gt, scoring),
            "bits_per_dim": done.bits_per_dim,
        }
    values = {
        "height": done.low.shape[0],
        "width": done.low.shape[1],
        **scores,
        "lost_share": float(zero_pixels(done.low).mean()),
        "seconds": round(done.seconds, 4),
    }
    std = None if done.std is None else 255 * done.std.mean(-1)
    records.add(pairs.ids[i], pairs.digests[i], shown, std, values)
