"""Batches, by Grain. What step n gives depends on the seed and n alone, whatever the workers.

Order, crop, flip, lost pixels and darkness of an example come from (seed, epoch, index). Hosts take
contiguous rows of the same global batch.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from zmar_jax.config import DataConfig
from zmar_jax.data.cache import PixelCache, Progress, open_cache
from zmar_jax.data.degrade import darken
from zmar_jax.data.errors import DataError
from zmar_jax.data.hashing import id_seed
from zmar_jax.data.masks import load_masks, lose_pixels
from zmar_jax.data.pictures import Split, pictures
from zmar_jax.exposure import apply_gain, brightest, gain, sample
from zmar_jax.images import turn

Batch = dict[str, np.ndarray]
"""low, gt: uint8 [b, H, W, 3] RGB; id: str [b]; of evaluation also valid: bool [b]."""


def make_loader(
    config: DataConfig,
    split: Split,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress = lambda done, total: None,
    white_point: float = 0.0,
) -> "Loader":
    """Batches of this host: its `batch_size / process_count` rows of each global batch.

    `train` goes on for ever, in crops of `config.crop`. `val` gives each whole picture once, only
    pictures of one size in a batch; rows that fill up a batch have `valid` False.

    Args:
      progress: called while pictures are decoded, which happens once.
      white_point: of the model (`ModelConfig`): what crops are exposed to, by their whole picture.

    Raises:
      DataError: a dataset that is missing, unreadable or smaller than the crop, or hosts that do
        not divide the batch.
    """
    if config.batch_size % process_count:
        raise DataError(
            f"data.batch_size {config.batch_size} must be a multiple of the {process_count} hosts"
        )
    smallest = config.crop if split == "train" else 16
    cache = open_cache(pictures(config, split), config.data_dir, smallest, progress)
    rows = config.batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)
    examples = Examples(config, cache, load_masks(config.masks), white_point)
    if split == "train":
        return Loader(TrainBatches(examples, mine), config.workers)
    return Loader(EvalBatches(examples, mine), config.workers)


class Loader(Iterator[Batch]):
    """An iterator over batches that can say where it is and be put elsewhere."""

    def __init__(self, batches: "TrainBatches | EvalBatches", workers: int):
        self.batches = batches
        self._workers = workers
        self.fingerprint = batches.examples.cache.fingerprint
        """Of the pictures; a state is of use to these alone."""
        self._go_to(0)

    def __len__(self) -> int:
        """Batches in all; of training, more than will ever be asked for."""
        return len(self.batches)

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The number of batches given so far: enough, since a batch depends on its step alone."""
        return {"step": self._step, "pictures": self.fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on as after `state["step"]` batches, at once: nothing is loaded to be skipped.

        Raises:
          DataError: the state is of other pictures, so other batches would follow.
        """
        if state["pictures"] != self.fingerprint:
            raise DataError(
                "the pictures are not those that this run was begun with; put them back, or begin "
                "another run"
            )
        self._go_to(state["step"])

    def restart(self) -> None:
        """Gives the first batch next."""
        self._go_to(0)

    def _go_to(self, step: int) -> None:
        self._step = step
        dataset = grain.MapDataset.source(self.batches).slice(slice(self._step, None))
        # two batches ahead in this process, one in each worker
        stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if self._workers:
            # Grain reads absl's flags, which programs without absl.app never parse
            flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=1)
            stream = stream.mp_prefetch(options, worker_init_fn=_follow_parent)
        self._iterator = iter(stream)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples made of decoded pictures: darkened if they are clean, masked, cropped."""

    config: DataConfig
    cache: PixelCache
    masks: tuple[np.ndarray, ...]
    """Of a folder, if the configuration names one."""
    white_point: float = 0.0

    @property
    def darkens(self) -> bool:
        """Whether the pictures are clean photographs."""
        return self.cache.roles == ("gt",)

    def crop(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random crop of picture i and its ground truth (SPEC section 7)."""
        height, width = self.cache.sizes[i]
        size = self.config.crop
        top, left = (int(rng.integers(n - size + 1)) for n in (height, width))
        seed = int(rng.integers(2**32))
        low, gt = self._window(i, seed, (top, left, size, size))
        if self.white_point:
            low = apply_gain(low, self.gain_of(i, seed))
        turns, mirror = _flip(self.config.flip, rng)
        return turn(low, turns, mirror), turn(gt, turns, mirror)

    def whole(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture i and its ground truth; always the same, by its id and the seed."""
        seed = id_seed(self.config.seed, self.cache.ids[i])
        return self._window(i, seed, (0, 0, *self.cache.sizes[i]))

    def gain_of(self, i: int, seed: int) -> float:
        """What exposes picture i with this seed; of the noise, another draw."""
        picture = self.cache.picture(i, self.cache.roles[0])
        if self.darkens:
            picture = sample(picture)
            if self.white_point == 1:  # no other pixel matters
                picture = brightest(picture)
            picture = darken(picture, seed, self.config.darken)
        return gain(picture, self.white_point)

    def _window(
        self, i: int, seed: int, window: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        top, left, height, width = window
        low, gt = (
            self.cache.picture(i, role)[top : top + height, left : left + width]
            for role in (self.cache.roles[0], "gt")
        )
        if self.darkens:
            low = darken(low, seed, self.config.darken)
        size, masks = self.cache.sizes[i], self.config.masks
        return lose_pixels(low, seed, size, window, masks, self.masks), np.asarray(gt)


class TrainBatches:
    """Global batch n is examples n B to (n + 1) B of an endless shuffled stream."""

    def __init__(self, examples: Examples, rows: slice):
        self.examples = examples
        self._rows = rows

    def __len__(self) -> int:
        return sys.maxsize // self.examples.config.batch_size

    def __getitem__(self, index: int) -> Batch:
        start = index * self.examples.config.batch_size
        stream = range(start + self._rows.start, start + self._rows.stop)
        return _stack([self._example(position) for position in stream])

    def _example(self, position: int) -> dict[str, Any]:
        cache, seed = self.examples.cache, self.examples.config.seed
        epoch, index = divmod(position, len(cache))
        i = int(_order(len(cache), seed, epoch)[index])
        low, gt = self.examples.crop(i, np.random.default_rng((_CROP, seed, epoch, index)))
        return {"low": low, "gt": gt, "id": cache.ids[i]}


class EvalBatches:
    """Every picture once, whole; batches hold one size, and rows that repeat are not valid."""

    def __init__(self, examples: Examples, rows: slice):
        self.examples = examples
        self._rows = rows
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, size in enumerate(examples.cache.sizes):
            by_size[size].append(i)
        batch = examples.config.batch_size
        self._batches = [
            indices[start : start + batch]
            for indices in by_size.values()
            for start in range(0, len(indices), batch)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        chosen = self._batches[index]
        return _stack([self._example(chosen, row) for row in range(*self._rows.indices(2**31))])

    def _example(self, chosen: list[int], row: int) -> dict[str, Any]:
        i = chosen[min(row, len(chosen) - 1)]
        low, gt = self.examples.whole(i)
        return {"low": low, "gt": gt, "id": self.examples.cache.ids[i], "valid": row < len(chosen)}


def _follow_parent(worker: int, workers: int) -> None:
    """Ctrl-C and SIGTERM go to all processes, but it is the training process that decides to end;
    and where it was killed, nobody else tells its workers."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


# NumPy pads short seeds with zeros, so that streams need a first number of their own
_ORDER, _CROP = 1, 2


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(count)


def _flip(flip: str, rng: np.random.Generator) -> tuple[int, bool]:
    """Quarter turns and whether to mirror; draws the same numbers whatever `flip` is."""
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    return turns if flip == "dihedral" else 0, mirror and flip != "none"


def _stack(examples: list[dict[str, Any]]) -> Batch:
    return {key: np.stack([np.asarray(e[key]) for e in examples]) for key in examples[0]}
