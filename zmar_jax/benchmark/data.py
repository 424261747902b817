"""Timings of loading batches on the machine at hand."""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from zmar_jax.config import DataConfig
from zmar_jax.data.cache import PixelCache
from zmar_jax.data.degrade import darken_picture
from zmar_jax.data.examples import Examples
from zmar_jax.data.folders import Tell
from zmar_jax.data.masks import draw_mask
from zmar_jax.data.pictures import pictures
from zmar_jax.data.pipeline import make_loader
from zmar_jax.runtime.stop import stop_if_asked

CHIPS, IMAGES = 4, 60
"""Chips of one TPU host, and the images a second that each is to train on."""


@dataclasses.dataclass(frozen=True)
class DataBenchmark:
    """Crops per second, and where the time of one goes.

    `decode_ms` is what decoding one example from its files takes. Where pictures are `decoded_once`
    no crop waits for it, and a cache of `cache_bytes` on disk holds the pixels. `shares` are of the
    time of one crop in one process.
    """

    pictures: int
    crop: int
    workers: int
    crops_per_second: float
    """Of this host, with all its workers."""
    per_worker: float
    """Crops per second of each worker process; of the only process where there is none."""
    needed: float
    """Crops per second that a TPU host of `CHIPS` chips needs."""
    margin: float
    """How many times that this host makes."""
    decoded_once: bool
    decode_ms: float
    cache_bytes: int
    shares: dict[str, float]


def benchmark_data(
    config: DataConfig, seconds: float, brightness: float = 0.0, tell: Tell = warnings.warn
) -> DataBenchmark:
    """Loads training batches for about `seconds`, then times the steps of single crops.

    Args:
      brightness, tell: as for `make_loader`.

    Raises:
      DataError: as `make_loader`.
    """
    loader = make_loader(config, "train", brightness=brightness, tell=tell)
    for _ in range(2 * config.workers + 2):  # the workers start, and fill their buffers
        next(loader)
    batches, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        stop_if_asked()
        next(loader)
        batches += 1
    examples = loader.batches.examples
    source, found = examples.source, pictures(config, "train")
    once = isinstance(source, PixelCache)
    speed, needed = batches * config.batch_size / elapsed, float(CHIPS * IMAGES)
    return DataBenchmark(
        pictures=len(source),
        crop=config.crop,
        workers=config.workers,
        crops_per_second=speed,
        per_worker=speed / max(config.workers, 1),
        needed=needed,
        margin=speed / needed,
        decoded_once=once,
        decode_ms=1000 * _seconds(lambda i: found.read(i % len(found)), min(len(found), 10)),
        cache_bytes=os.path.getsize(source.folder / "pixels.bin") if once else 0,
        shares=_shares(examples),
    )


def _shares(examples: Examples, count: int = 100) -> dict[str, float]:
    config, source = examples.config, examples.source
    window = (0, 0, config.crop, config.crop)

    def read(i: int) -> list[np.ndarray]:
        pixels = source.read(i % len(source))
        return [view[: config.crop, : config.crop].copy() for view in pixels]

    crop, size = read(0)[0], source.read(0)[0].shape[:2]
    parts: dict[str, Callable[[int], Any]] = {
        "reading pixels": read,
        "masks": lambda i: draw_mask(i, size, config.masks, examples.masks, window),
    }
    if examples.darkens:
        parts["darkening"] = lambda i: darken_picture(crop, i, config.darken)
    if examples.brightness:
        pixels = source.read(0)
        parts["exposure"] = lambda i: examples.exposure(pixels, i)
    whole = _seconds(lambda i: examples.crop(i % len(source), np.random.default_rng(i)), count)
    return {name: _seconds(part, count) / whole for name, part in parts.items()}


def _seconds(function: Callable[[int], Any], count: int) -> float:
    function(0)
    start = time.perf_counter()
    for i in range(count):
        function(i)
    return (time.perf_counter() - start) / count
