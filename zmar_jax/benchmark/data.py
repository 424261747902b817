"""Timings of loading batches on the machine at hand."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.config import DataConfig
from zmar_jax.data.cache import open_cache
from zmar_jax.data.degrade import darken_picture
from zmar_jax.data.examples import Examples
from zmar_jax.data.masks import draw_mask, load_masks
from zmar_jax.data.pictures import pictures
from zmar_jax.data.pipeline import make_loader
from zmar_jax.runtime.stop import stop_if_asked


@dataclasses.dataclass(frozen=True)
class DataBenchmark:
    """Crops per second, and where the time of one goes.

    `decode_ms` is what decoding one example from its files takes, which happens once: the cache
    of `cache_bytes` on disk holds the pixels. `shares` are of the time of one crop in
    one process; decoding has none of it.
    """

    pictures: int
    crop: int
    workers: int
    crops_per_second: float
    per_worker: float
    """Crops per second of each worker process; of the only process where there is none."""
    decode_ms: float
    cache_bytes: int
    shares: dict[str, float]


def benchmark_data(config: DataConfig, seconds: float, brightness: float = 0.0) -> DataBenchmark:
    """Loads training batches for about `seconds`, then times the steps of single crops.

    Args:
      brightness: as for `make_loader`.

    Raises:
      DataError: as `make_loader`.
    """
    loader = make_loader(config, "train", brightness=brightness)
    for _ in range(2 * config.workers + 2):  # the workers start, and fill their buffers
        next(loader)
    batches, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        stop_if_asked()
        next(loader)
        batches += 1
    found = pictures(config, "train")
    leave_out = (lambda text: None) if config.skip_broken else None  # the loader has told
    cache = open_cache(found, config.data_dir, config.crop, lambda *_: None, leave_out)
    count = min(len(found.ids), 10)
    decode = _seconds(lambda i: found.read(i % len(found.ids)), count)
    speed = batches * config.batch_size / elapsed
    return DataBenchmark(
        pictures=len(found.ids),
        crop=config.crop,
        workers=config.workers,
        crops_per_second=speed,
        per_worker=speed / max(config.workers, 1),
        decode_ms=1000 * decode,
        cache_bytes=os.path.getsize(Path(cache.folder) / "pixels.bin"),
        shares=_shares(Examples(config, cache, load_masks(config.masks), brightness)),
    )


def _shares(examples: Examples, count: int = 100) -> dict[str, float]:
    config, cache = examples.config, examples.cache
    window = (0, 0, config.crop, config.crop)

    def read(i: int) -> list[np.ndarray]:
        views = (cache.picture(i % len(cache), role) for role in cache.roles)
        return [view[: config.crop, : config.crop].copy() for view in views]

    crop = read(0)[0]
    parts: dict[str, Callable[[int], Any]] = {
        "reading pixels": read,
        "masks": lambda i: draw_mask(
            i, cache.sizes[i % len(cache)], config.masks, examples.masks, window
        ),
    }
    if examples.darkens:
        parts["darkening"] = lambda i: darken_picture(crop, i, config.darken)
    if examples.brightness:
        parts["exposure"] = lambda i: examples.exposure(i % len(cache), i)
    whole = _seconds(lambda i: examples.crop(i % len(cache), np.random.default_rng(i)), count)
    return {name: _seconds(part, count) / whole for name, part in parts.items()}


def _seconds(function: Callable[[int], Any], count: int) -> float:
    function(0)
    start = time.perf_counter()
    for i in range(count):
        function(i)
    return (time.perf_counter() - start) / count
