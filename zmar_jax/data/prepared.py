"""Benchmarks as `zmar-jax prepare` wrote them: the manifest, and examples by index."""

import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zmar_jax.config.data import BENCHMARKS
from zmar_jax.data.errors import DataError
from zmar_jax.data.frames import decode_plain
from zmar_jax.data.layouts import PublishedSplit
from zmar_jax.files.mirror import Mirror
from zmar_jax.files.places import Bucket, is_url, kept, place
from zmar_jax.files.replacing import put_back, whole_folder

VERSION = "1.0.0"
"""Of the records: the folder below the benchmark's."""
MANIFEST = "manifest.json"


class Prepared:
    """A split on disk, by index: `prepared[i]` is (id, low, gt), uint8 [H, W, 3], RGB.

    ids: of every example, sorted; unique within the split.
    sizes: (height, width) of every example.
    checksums: of the bytes of every example.
    fingerprint: 32 hex digits that change with any id, size or byte of an image.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], split: PublishedSplit):
        examples = manifest["splits"][split]["examples"]
        self.name: str = manifest["name"]
        self.split: PublishedSplit = split
        self.ids: tuple[str, ...] = tuple(e["id"] for e in examples)
        self.sizes: tuple[tuple[int, int], ...] = tuple((e["height"], e["width"]) for e in examples)
        self.fingerprint: str = manifest["splits"][split]["fingerprint"]
        self.checksums: tuple[str, ...] = tuple(e["checksum"] for e in examples)
        self._folder = folder

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Raises DataError when the record is damaged: its checksum is computed at each reading."""
        index = range(len(self))[index]
        low, gt = self.encoded(index)
        return self.ids[index], decode_plain(low), decode_plain(gt)

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """low and gt as PNG files: for the png benchmarks, byte for byte those of the source."""
        index = range(len(self))[index]
        try:
            record = self._records[index]
            intact = checksum(record) == self.checksums[index]
        except Exception as e:  # array_record raises errors of many types
            raise DataError(self._damaged(index, str(e))) from e
        if not intact:
            raise DataError(self._damaged(index, "its checksum is not that of the manifest"))
        return record["low"], record["gt"]

    @functools.cached_property
    def _records(self) -> Any:
        return records_of(tfds.builder_from_directory(self._folder), self.split)

    def _damaged(self, index: int, reason: str) -> str:
        return (
            f"{self._folder}: {self.split} example {self.ids[index]} is damaged "
            f"({' '.join(reason.split())}); run `zmar-jax prepare` again with --overwrite"
        )


def open_prepared(name: str, data_dir: str | Path, split: PublishedSplit) -> Prepared:
    """What `prepare` wrote. Decodes nothing yet.

    Where `data_dir` is a URL, a copy of it that this machine keeps; it is fetched where there is
    none, or another one.

    Raises DataError: not prepared (with the command to run), damaged, or an unknown split.
    PlaceError: the bucket cannot be read.
    """
    if name not in BENCHMARKS:
        raise DataError(f"{name!r} is no benchmark; expected one of {', '.join(BENCHMARKS)}")
    if split not in ("train", "test"):
        raise DataError(f"{name} has no split {split!r}; expected train or test")
    folder = kept(data_dir).absolute() / name / VERSION
    try:
        put_back(folder.parent)
        if is_url(data_dir):
            _fetch(f"{place(data_dir)}/{name}/{VERSION}", folder)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        part = manifest["splits"][split]
        if part["fingerprint"] != fingerprint(manifest["name"], split, part["examples"]):
            raise ValueError("its fingerprint does not fit")
        if manifest["name"] != name:
            raise ValueError(f"it is that of {manifest['name']}")
        return Prepared(folder, manifest, split)
    except (FileNotFoundError, NotADirectoryError) as e:
        advice = f"FOLDER` and copy FOLDER/{name} there" if is_url(data_dir) else f"{data_dir}`"
        raise DataError(
            f"{place(data_dir)}/{name}/{VERSION}: {name} is not prepared; run "
            f"`zmar-jax prepare {name} --source FOLDER --data-dir {advice}"
        ) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{folder / MANIFEST}: damaged ({e}); "
            f"run `zmar-jax prepare {name}` again with --overwrite"
        ) from e


def _fetch(url: str, folder: Path) -> None:
    manifest = Bucket(url).read(MANIFEST)
    there = folder / MANIFEST
    if not (there.exists() and there.read_bytes() == manifest):
        with whole_folder(folder) as new:
            Mirror(new, url).pull()


def verify(name: str, data_dir: str | Path) -> int:
    """Reads every record and compares its checksum; the number of examples.

    Raises DataError that lists every damaged example.
    """
    count, damaged = 0, []
    for split in ("train", "test"):
        prepared = open_prepared(name, data_dir, split)
        for index in range(len(prepared)):
            try:
                prepared.encoded(index)
            except DataError as e:
                damaged.append(str(e))
        count += len(prepared)
    if damaged:
        raise DataError("\n  ".join([f"{name}: {len(damaged)} of {count} are damaged", *damaged]))
    return count


def records_of(builder: Any, split: PublishedSplit) -> Any:
    """The records of a builder, by index: {"id", "low", "gt"}, all bytes as they were written."""
    encoded = {"low": tfds.decode.SkipDecoding(), "gt": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=encoded)


def checksum(record: dict[str, bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in ("low", "gt"):
        digest.update(len(record[key]).to_bytes(8, "little") + record[key])
    return digest.hexdigest()


def fingerprint(name: str, split: PublishedSplit, examples: list[dict[str, Any]]) -> str:
    text = json.dumps([name, split, examples], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def png_size(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return height, width
