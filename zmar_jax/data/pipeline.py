"""Batches, by Grain. What step n gives depends on the seed and n alone, whatever the workers.

Order, crop, flip, lost pixels and darkness of an example come from (seed, epoch, index). Hosts take
contiguous rows of the same global batch.
"""

import functools
import multiprocessing
import multiprocessing.process
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from zmar_jax.config import DataConfig, ModelConfig
from zmar_jax.data.cache import open_source
from zmar_jax.data.children import follow_parent
from zmar_jax.data.errors import DataError
from zmar_jax.data.examples import Examples
from zmar_jax.data.folders import Tell
from zmar_jax.data.masks import load_masks, masks_digest
from zmar_jax.data.pictures import pictures
from zmar_jax.data.sources import Progress, Split, silent

Batch = dict[str, np.ndarray]
"""low, gt: uint8 [b, H, W, 3] RGB; id: str [b]; of evaluation also valid: bool [b]."""


def make_loader(
    config: DataConfig,
    split: Split,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress = silent,
    brightness: float = 0.0,
    tell: Tell = warnings.warn,
) -> "Loader":
    """Batches of this host: its `batch_size / process_count` rows of each global batch.

    `train` goes on for ever, in crops of `config.crop`. `val` gives each whole picture once, only
    pictures of one size in a batch; rows that fill up a batch have `valid` False. Where no workers
    can start, as in a program that is read from a pipe, this process loads.

    Args:
      progress: called while pictures are decoded, where that happens once, and shards fetched.
      brightness: of the model (`ModelConfig`): what crops are exposed to, by their whole picture.
      tell: called with one line of what folders hold that is not read, of what is left out, of
        pictures that are not decoded once, and of workers that cannot start.

    Raises:
      DataError: a dataset that is missing, unreadable or smaller than the crop, or hosts that do
        not divide the batch.
    """
    if config.batch_size % process_count:
        raise DataError(
            f"data.batch_size {config.batch_size} must be a multiple of the {process_count} hosts"
        )
    smallest = config.crop if split == "train" else ModelConfig().smallest
    found = pictures(config, split, tell, progress)
    source = open_source(
        found,
        config.data_dir,
        smallest,
        progress,
        tell if config.skip_broken else None,
        config.cache_gib,
        tell,
    )
    rows = config.batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)
    # both splits have the same masks, so it is told once
    masks = load_masks(config.masks, tell) if split == "train" else load_masks(config.masks)
    examples = Examples(config, source, masks, brightness)
    batches = TrainBatches if split == "train" else EvalBatches
    return Loader(batches(examples, mine), _workers(config.workers, tell))


class Loader(Iterator[Batch]):
    """An iterator over batches that can say where it is and be put elsewhere."""

    def __init__(self, batches: "TrainBatches | EvalBatches", workers: int):
        self.batches = batches
        self._workers = workers
        examples = batches.examples
        self.pictures, self.masks = examples.source.key, masks_digest(examples.masks)
        """Fingerprints of what batches are made of: the pictures, and the masks of a folder."""
        self._go_to(0)

    @property
    def fingerprint(self) -> str:
        """Tells apart all that batches are made of; a state is of use where it is the same."""
        return f"{self.pictures}, masks {self.masks}"

    def __len__(self) -> int:
        """Batches in all; of training, more than will ever be asked for."""
        return len(self.batches)

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The number of batches given so far: enough, since a batch depends on its step alone."""
        return {"step": self._step, "pictures": self.pictures, "masks": self.masks}

    def set_state(self, state: dict[str, Any], accept_changes: bool = False) -> None:
        """Goes on as after `state["step"]` batches, at once: nothing is loaded to be skipped.

        Args:
          accept_changes: go on although the masks are others.

        Raises:
          DataError: the state is of other pictures or masks, so other batches would follow.
        """
        if state["pictures"] != self.pictures:
            raise DataError(
                "the pictures are not those that this run was begun with; put them back, or begin "
                "another run"
            )
        # states of older versions say nothing of masks
        if state.get("masks", self.masks) != self.masks and not accept_changes:
            raise DataError(
                "the masks are not those that this run was begun with; put them back, begin "
                "another run, or say --accept-changes"
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
            stream = stream.mp_prefetch(options, worker_init_fn=follow_parent)
        self._iterator = iter(stream)


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
        source, seed = self.examples.source, self.examples.config.seed
        epoch, index = divmod(position, len(source))
        i = int(_order(len(source), seed, epoch)[index])
        low, gt = self.examples.crop(i, np.random.default_rng((_CROP, seed, epoch, index)))
        return {"low": low, "gt": gt, "id": source.ids[i]}


class EvalBatches:
    """Every picture once, whole; batches hold one size, and rows that repeat are not valid."""

    def __init__(self, examples: Examples, rows: slice):
        self.examples = examples
        self._rows = rows
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (height, width) in enumerate(examples.source.sizes):
            by_size[int(height), int(width)].append(i)
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
        return {"low": low, "gt": gt, "id": self.examples.source.ids[i], "valid": row < len(chosen)}


def _workers(wanted: int, tell: Tell) -> int:
    """How many processes can load batches: none where they could not start, which is told."""
    if wanted and (problem := _hindrance()):
        tell(f"data.workers={wanted}: {problem}; batches are loaded in this process")
        return 0
    return wanted


def _hindrance() -> str:
    """Why no process can start from this one; "" if one can."""
    if multiprocessing.current_process().daemon:
        return "this process may not start others"
    # each would run the program again, but for the part under `if __name__ == "__main__"`
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return ""  # there is no program to run, or it is a module
    there = Path(getattr(multiprocessing.process, "ORIGINAL_DIR", None) or "", file).is_file()
    return "" if there else f"the program is {file}, which no other process can read"


# NumPy pads short seeds with zeros, so that streams need a first number of their own
_ORDER, _CROP = 1, 2


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(count)


def _stack(examples: list[dict[str, Any]]) -> Batch:
    return {key: np.stack([np.asarray(e[key]) for e in examples]) for key in examples[0]}
