"""The six benchmarks as TensorFlow Datasets, written without TensorFlow."""

import contextlib
import fcntl
import functools
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zmar_jax.data.bars import Bar, quiet
from zmar_jax.data.errors import DataError
from zmar_jax.data.frames import npy_to_png
from zmar_jax.data.layouts import FoundBenchmark, Pair, check_source, count_warnings, find_source
from zmar_jax.data.prepared import MANIFEST, VERSION, checksum, fingerprint, png_size, records_of
from zmar_jax.data.prepared import open_prepared as open_prepared
from zmar_jax.data.prepared import verify as verify
from zmar_jax.files.places import local
from zmar_jax.files.replacing import put_back, replace_folder, write_whole
from zmar_jax.imaging.images import Step

CROP = 160
_SHARD = 1024
"""Examples of one record file."""


@dataclass(frozen=True)
class _Frame:
    """An npy file that reads as a PNG, made when TensorFlow Datasets asks for it."""

    path: Path
    is_gt: bool

    def read(self) -> bytes:
        return npy_to_png(self.path, self.is_gt)


class _Pairs(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Pairs of PNG files: `low`, `gt`: uint8 [H, W, 3], RGB; `id`: text.

    Not a GeneratorBasedBuilder: that one needs TensorFlow for sets above 1 GB, which it sorts on
    disk. Here examples keep the order of their ids, and are written as they come.
    """

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder as its authors publish it, or one that holds it."

    def __init__(
        self,
        *,
        source: FoundBenchmark | None = None,
        step: Step = lambda low, gt, error: None,
        **kwargs,
    ):
        """`source` has been checked; without one, `manual_dir` is searched and checked."""
        self._source = source
        self._step = step
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        image = functools.partial(
            tfds.features.Image, shape=(None, None, 3), dtype=np.uint8, encoding_format="png"
        )
        features = {"low": image(), "gt": image(), "id": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: low-light images and their ground truth.",
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager):
        source = self._source
        if source is None:
            source = find_source(self.name, os.fspath(dl_manager.manual_dir))
            check_source(source, CROP)
        shards: dict[str, list] = {}
        for split in ("train", "test"):
            pairs = [pair for pair in source.pairs if pair.split == split]
            shards[split] = [
                functools.partial(self._examples, pairs[i : i + _SHARD])
                for i in range(0, len(pairs), _SHARD)
            ]
        return shards

    def _examples(self, pairs: list[Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        for pair in pairs:
            low, gt = pair.low, pair.gt
            if low.suffix.lower() == ".npy":
                low, gt = _Frame(low, False), _Frame(gt, True)
            yield pair.id, {"low": low, "gt": gt, "id": pair.id}
            self._step(pair.low, pair.gt, None)


class LolV1(_Pairs):
    """LOL-v1: 485 / 15."""


class LolV2Real(_Pairs):
    """LOL-v2, captured: 689 / 100."""


class LolV2Synthetic(_Pairs):
    """LOL-v2, synthetic: 900 / 100."""


class SdsdIndoor(_Pairs):
    """SDSD, indoor, static: videos of scenes; 6 scenes are tested on."""


class SdsdOutdoor(_Pairs):
    """SDSD, outdoor, static: videos of scenes; 10 scenes are tested on."""


class Sid(_Pairs):
    """SID, Sony: 2099 / 598 short exposures."""


BUILDERS: dict[str, type[_Pairs]] = {
    builder.name: builder
    for builder in (LolV1, LolV2Real, LolV2Synthetic, SdsdIndoor, SdsdOutdoor, Sid)
}


def prepare(
    name: str,
    source: str | Path,
    data_dir: str | Path,
    crop: int = CROP,
    overwrite: bool = False,
    progress: Bar = quiet,
    warn: Callable[[str], object] = warnings.warn,
) -> dict[str, Any]:
    """Writes the benchmark `name` from the folder `source` to `data_dir`/`name`; the manifest.

    All of the source is checked first. The set is built in a hidden folder in `data_dir`, read
    back and renamed, so it is there whole or not at all; what an interrupted run left is removed.

    Args:
      crop: Images with a side below this are errors, pixels.
      overwrite: Replace a set prepared before; nothing else is ever replaced.
      warn: Told how the source differs from the published set.

    Raises DataError: see `find_source` and `check_source`; something is at `data_dir`/`name`;
    another process is preparing the same; the disk is full or may not be written.
    """
    target = local(data_dir).absolute() / name
    found = find_source(name, source)
    try:
        put_back(target)
        _refuse(target, overwrite)
        with progress(len(found.pairs), "checking") as step:
            check_source(found, crop, step)
        for warning in count_warnings(found):
            warn(warning)
        with _workplace(target) as place:
            with progress(len(found.pairs), "writing") as step:
                builder = BUILDERS[name](source=found, step=step, data_dir=place)
                # It tells stdout of downloads, and there are none.
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare(download_dir=place / "downloads")
            with progress(len(found.pairs), "reading back") as step:
                manifest = _manifest(builder, found, crop, step)
            write_whole(place / name / VERSION / MANIFEST, json.dumps(manifest, indent=1))
            replace_folder(place / name, target)
    except (OSError, RuntimeError) as e:  # array_record raises the latter when the disk is full
        raise DataError(f"{target}: {name} cannot be prepared ({e})") from e
    return manifest


def _manifest(builder: _Pairs, source: FoundBenchmark, crop: int, step: Step) -> dict[str, Any]:
    """The manifest of what is on disk; DataError unless that is all of `source`, in order."""
    splits = {}
    for split in ("train", "test"):
        pairs = [pair for pair in source.pairs if pair.split == split]
        examples = []
        for pair, record in zip(pairs, records_of(builder, split), strict=True):
            if record["id"].decode() != pair.id:
                raise DataError(f"{pair.low}: written as {pair.id}, read back as {record['id']}")
            height, width = png_size(record["low"])
            example = {"id": pair.id, "height": height, "width": width}
            examples.append({**example, "checksum": checksum(record)})
            step(pair.low, pair.gt, None)
        splits[split] = {
            "count": len(examples),
            "fingerprint": fingerprint(source.name, split, examples),
            "examples": examples,
        }
    return {
        "name": source.name,
        "zmar_jax": version("zmar-jax"),
        "source": str(source.root),
        "layout": source.layout,
        "crop": crop,
        "splits": splits,
    }


def _refuse(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not (target / VERSION / MANIFEST).is_file():
        raise DataError(
            f"{target}: is no prepared set, so it is not replaced; choose another --data-dir"
        )
    if not overwrite:
        raise DataError(f"{target}: is prepared already; give --overwrite to prepare it again")


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target` for this process alone; removed at the end."""
    place = target.with_name(f".{target.name}.preparing")
    place.mkdir(parents=True, exist_ok=True)
    # The lock ends with the process, however that ends.
    lock = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DataError(f"{place}: another process is preparing {target.name}; wait") from e
        try:
            for leftover in place.iterdir():
                shutil.rmtree(leftover)
            yield place
        finally:
            shutil.rmtree(place)
    finally:
        os.close(lock)
