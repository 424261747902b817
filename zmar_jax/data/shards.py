"""Photographs in ArrayRecord files, as `zmar-jax prepare photos` wrote them, by index.

FOLDER/shards.json                 what is there: for each split its shards, sizes and fingerprint
FOLDER/train-00000.array_record    some thousand photographs, each as its file was
FOLDER/train-sizes.npy             uint32 [n, 2]: height and width of each, as it is shown

Nothing here grows with the number of photographs but the file of sizes, which is mapped: a name and
a picture are read when they are asked for.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from zmar_jax.data.copies import eight_bits
from zmar_jax.data.errors import DataError
from zmar_jax.data.frames import decode_plain
from zmar_jax.data.sources import Progress, Split
from zmar_jax.files.places import Bucket, is_url, kept, local, place
from zmar_jax.files.replacing import replace_file, write_whole
from zmar_jax.imaging.images import decode_photo

MANIFEST = "shards.json"
FORMAT = 1
SPLITS: tuple[Split, ...] = ("train", "val")
_FETCHERS = 4


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its photographs, its size, and a fingerprint of names and pictures."""

    file: str
    records: int
    bytes: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A split: its photographs and those left out, in order of their names.

    fingerprint: the one that a folder of the same files has.
    """

    count: int
    fingerprint: str
    shards: tuple[Shard, ...]
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `shards.json` says."""

    zmar_jax: str
    source: str
    crop: int
    val_share: float
    shard_bytes: int
    splits: dict[str, Part]
    format: int = FORMAT

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def read_manifest(path: Path) -> Manifest:
    """Raises DataError where it is damaged, or of another version; OSError where there is none."""
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}, not {FORMAT}")
        for part in found["splits"].values():
            part["shards"] = tuple(Shard(**shard) for shard in part["shards"])
            part["left_out"] = tuple(part["left_out"])
        splits = {name: Part(**part) for name, part in found.pop("splits").items()}
        for part in splits.values():
            if part.count != sum(shard.records for shard in part.shards):
                raise ValueError("its counts do not fit")
        return Manifest(**found, splits=splits)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path}: damaged ({e}); run `zmar-jax prepare photos` again with --overwrite"
        ) from e


def sizes_file(split: str) -> str:
    return f"{split}-sizes.npy"


class Record(NamedTuple):
    """A photograph: its name, the bytes of its file, and whether `decode_plain` will do for it."""

    id: str
    file: bytes
    plain: bool

    def encode(self) -> bytes:
        """One byte says whether it is plain, two how long the name is; name and file follow."""
        name = os.fsencode(self.id)
        return bytes([self.plain]) + len(name).to_bytes(2, "little") + name + self.file


def decode(record: bytes) -> Record:
    end = 3 + int.from_bytes(record[1:3], "little")
    return Record(os.fsdecode(record[3:end]), record[end:], bool(record[0]))


def holds_shards(folder: str | Path) -> bool:
    """Whether a folder was prepared; a URL must name one that was."""
    return is_url(folder) or (local(folder) / MANIFEST).is_file()


class Shards:
    """A split on disk: `read(i)` is (gt,), uint8 [H, W, 3], RGB. Cheap to pickle."""

    def __init__(self, folder: Path, manifest: Manifest, split: Split, url: str | None = None):
        """Raises DataError where a shard is missing or has another size: none is opened yet.

        Args:
          url: of what `folder` is a copy.
        """
        self._folder, self._source, self._url = folder, manifest.source, url
        part = manifest.splits[split]
        self._shards = part.shards
        self.val_share, self.fingerprint = manifest.val_share, part.fingerprint
        self.ids = _Ids(self)
        self._last: tuple[int, Record] | None = None
        self._ends = list(itertools.accumulate(shard.records for shard in part.shards))
        self._sizes_file = folder / sizes_file(split)
        if broken := broken_shards(folder, part.shards):
            shard, problem = broken[0]
            more = f" (and {len(broken) - 1} more)" if broken[1:] else ""
            raise DataError(self._mend(f"{folder / shard.file}: {problem}{more}", remove=False))
        if len(self.sizes) != part.count:
            raise DataError(f"{self._sizes_file}: damaged; prepare the set again with --overwrite")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_records", "sizes")}
        return kept | {"_last": None}

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """uint32 [n, 2]: height and width of each, mapped."""
        try:
            return np.load(self._sizes_file, mmap_mode="r")
        except (OSError, ValueError) as e:
            raise DataError(
                f"{self._sizes_file}: cannot be read ({e}); prepare the set again with --overwrite"
            ) from e

    def record(self, i: int) -> Record:
        """DataError where the shard is damaged."""
        i = range(len(self))[i]
        if self._last is not None and self._last[0] == i:  # its name, or its pixels, were asked for
            return self._last[1]
        try:
            found = decode(self._records[i])
        except Exception as e:  # array_record raises errors of many types
            raise DataError(self._damaged(i, "", str(e))) from e
        self._last = i, found
        return found

    def read(self, i: int) -> tuple[np.ndarray, ...]:
        id_, file, plain = self.record(i)
        try:
            if plain:
                return (decode_plain(file),)
            return (eight_bits(decode_photo(file, Path(id_)).rgb),)
        except ValueError as e:
            raise DataError(self._damaged(i, f" ({id_})", str(e))) from e

    @functools.cached_property
    def _records(self) -> Any:
        import grain  # which takes a second, and writing shards can do without

        paths: Any = [_All(os.fspath(self._folder / s.file), s.records) for s in self._shards]
        return grain.sources.ArrayRecordDataSource(paths)

    def _damaged(self, i: int, name: str, reason: str) -> str:
        k = bisect.bisect_right(self._ends, i)
        first = self._ends[k - 1] if k else 0
        text = f"{self._folder / self._shards[k].file}: record {i - first}{name} is damaged"
        return self._mend(f"{text} ({' '.join(reason.split())})", remove=True)

    def _mend(self, problem: str, remove: bool) -> str:
        if self._url is not None:
            return f"{problem}; it is a copy from {self._url}: mend that, or remove the copy"
        again = f"zmar-jax prepare photos --source {self._source} --data-dir {self._folder.parent}"
        first = "remove that file and run" if remove else "run"
        return f"{problem}; {first} `{again}` again, which writes only what is missing"


class _Ids(Sequence[str]):
    """Names, read one by one."""

    def __init__(self, shards: Shards):
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, i: Any) -> Any:
        return self._shards.record(i).id


@dataclasses.dataclass(frozen=True)
class _All:
    """All of a file, as array_record wants to be told: it is not opened to be counted."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def broken_shards(folder: Path, shards: Sequence[Shard]) -> list[tuple[Shard, str]]:
    """Those that are missing or of another size than the manifest says, and what is wrong."""
    found = []
    for shard in shards:
        try:
            size = (folder / shard.file).stat().st_size
        except OSError as e:
            found.append((shard, f"cannot be read ({e.strerror})"))
            continue
        if size != shard.bytes:
            found.append((shard, f"has {size} bytes, not {shard.bytes}: it was cut or replaced"))
    return found


def open_shards(folder: str | Path, split: Split, progress: Progress) -> Shards:
    """What `prepare` wrote. Of a URL, from a copy that this machine keeps and completes.

    Args:
      progress: called while shards are fetched.

    Raises:
      DataError: nothing is there, it is damaged, or a shard is missing or cut.
      PlaceError: the bucket cannot be read.
    """
    where = kept(folder)
    try:
        if is_url(folder):
            _fetch(str(place(folder)), where, progress)
        url = str(place(folder)) if is_url(folder) else None
        return Shards(where, read_manifest(where / MANIFEST), split, url)
    except FileNotFoundError as e:
        raise DataError(
            f"{place(folder)}: no photographs in shards ({MANIFEST} is missing); run `zmar-jax "
            "prepare photos --source FOLDER --data-dir DIR` and copy DIR/photos there"
        ) from e


def _fetch(url: str, folder: Path, progress: Progress) -> None:
    """Copies what this machine lacks of a set, each file whole or not at all."""
    bucket, there, arriving = Bucket(url), folder / MANIFEST, folder / f".{MANIFEST}.arriving"
    text = bucket.read(MANIFEST)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # processes of one machine fetch once
        write_whole(arriving, text.decode())
        old, new = (_all_shards(path) if path.exists() else set() for path in (there, arriving))
        # what goes, goes first: one of another content may have the same name and size
        outdated = [shard.file for shard in old - new]
        outdated += map(sizes_file, SPLITS) if old != new else []
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
        replace_file(arriving, there)
        lacking = [shard.file for shard, _ in broken_shards(folder, list(new))]
        lacking += [name for name in map(sizes_file, SPLITS) if not (folder / name).exists()]
        with contextlib.closing(_fetch_all(bucket, lacking, folder)) as fetched:
            for done in fetched:
                progress(f"fetching shards of {url}", done, len(lacking))


def _fetch_all(bucket: Bucket, names: Sequence[str], folder: Path) -> Generator[int, None, None]:
    """How many are there, after each."""
    with concurrent.futures.ThreadPoolExecutor(_FETCHERS) as pool:
        fetched = [pool.submit(_fetch_one, bucket, name, folder) for name in names]
        try:
            for done, one in enumerate(concurrent.futures.as_completed(fetched), 1):
                one.result()
                yield done
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_one(bucket: Bucket, name: str, folder: Path) -> None:
    arriving = folder / f".{name}.arriving"
    bucket.fetch(name, arriving)
    replace_file(arriving, folder / name)


def _all_shards(manifest: Path) -> set[Shard]:
    return {shard for part in read_manifest(manifest).splits.values() for shard in part.shards}
