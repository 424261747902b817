"""Shards of photographs (`data.shards`) written by several processes, each whole or not at all.

A shard counts as soon as its `.json` is beside it, which says what it was made of.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.data.bars import Bar
from zmar_jax.data.children import follow_parent
from zmar_jax.data.errors import DataError
from zmar_jax.data.frames import decode_plain
from zmar_jax.data.pictures import photo_id, sample_of
from zmar_jax.data.shards import Record, Shard
from zmar_jax.data.sources import Split
from zmar_jax.files.replacing import replace_file, write_whole
from zmar_jax.imaging.images import decode_photo, size_text

_PLAIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""How files begin that OpenCV may be asked to decode: in others it warns, or crashes."""
POLL = 0.2
"""Seconds between two looks at what the processes have done."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to write.

    photos: paths, and names relative to the source.
    crop: photographs with a shorter side are left out.
    key: changes with names, sizes and dates of the photographs, and with `crop`.
    """

    split: Split
    file: str
    photos: tuple[tuple[str, str], ...]
    crop: int
    key: str


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a task.

    samples: of each file, as of `pictures.sample_of`; sizes: height and width of each picture.
    left_out: photographs that cannot be used, and why, in one line each.
    """

    key: str
    shard: Shard
    ids: list[str]
    samples: list[str]
    sizes: list[tuple[int, int]]
    left_out: list[str]


def written(folder: Path, task: Task) -> Written | None:
    """What was made of this very task, if it is there."""
    try:
        said = json.loads(_note(folder, task.file).read_bytes().decode("utf-8", "surrogateescape"))
        found = Written(**{**said, "shard": Shard(**said["shard"])})
        there = (folder / found.shard.file).stat().st_size == found.shard.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if there and found.key == task.key else None


def write_shards(tasks: Sequence[Task], folder: Path, workers: int, progress: Bar) -> None:
    """Writes them to `folder`, with progress by photographs.

    Args:
      workers: processes; 0 writes in this one.

    Raises:
      DataError: a process was killed. OSError, RuntimeError: a shard cannot be written.
      Whatever `progress` raises. What is whole stays.
    """
    with progress(sum(len(task.photos) for task in tasks), "writing") as step:
        if not workers:
            for task in tasks:
                write_shard(task, folder, lambda: step(folder, folder, None))
            return
        context = multiprocessing.get_context("spawn")
        count, ended = context.Value("q", 0), context.Value("b", 0)
        pool = concurrent.futures.ProcessPoolExecutor(
            min(workers, len(tasks)) or 1, context, _begin, (count, ended)
        )
        shown = 0
        try:
            waiting = {pool.submit(_write_in_pool, task, folder) for task in tasks}
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, POLL)
                while shown < count.value:
                    shown += 1
                    step(folder, folder, None)
                for one in done:
                    one.result()
        except BrokenProcessPool as e:
            raise DataError(
                "a process that wrote shards was killed, maybe for memory; the same command goes "
                "on, with a lower --workers if need be"
            ) from e
        finally:
            ended.value = 1
            pool.shutdown(cancel_futures=True)


def write_shard(task: Task, folder: Path, step: Callable[[], object]) -> Written:
    """Writes one shard, and its note; `step` is called after each photograph and may raise."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = folder / f".{task.file}.partial"
    ids, samples, sizes, left_out = [], [], [], []
    digest = hashlib.blake2b(digest_size=16)
    # photographs are compressed already; Grain reads records one by one
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1,uncompressed")
    try:
        for path, name in task.photos:
            try:
                record, size = _checked(Path(path), photo_id(Path(name)), task.crop)
            except ValueError as e:
                left_out.append(str(e))
            else:
                ids.append(record.id)
                samples.append(sample_of(io.BytesIO(record.file)))
                sizes.append(size)
                _add(digest, os.fsencode(record.id), record.file)
                writer.write(record.encode())
            step()
    finally:
        writer.close()
    shard = Shard(task.file, len(ids), partial.stat().st_size, digest.hexdigest())
    result = Written(task.key, shard, ids, samples, sizes, left_out)
    _note(folder, task.file).unlink(missing_ok=True)  # of what the new one replaces
    replace_file(partial, folder / task.file)
    write_whole(_note(folder, task.file), json.dumps(dataclasses.asdict(result)))
    return result


def remove_notes(folder: Path, keep: str) -> None:
    """Removes what told of shards that were being written."""
    for note in folder.glob("*.json"):
        if note.name != keep:
            note.unlink()


def _note(folder: Path, file: str) -> Path:
    return (folder / file).with_suffix(".json")


def _checked(path: Path, id_: str, crop: int) -> tuple[Record, tuple[int, int]]:
    """A photograph, its height and its width; ValueError where it is broken or too small."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    pixels = decode_photo(data, path).rgb
    height, width, _ = pixels.shape
    if min(height, width) < crop:
        raise DataError(f"{path} ({size_text((height, width))}), smaller than {crop}x{crop}")
    return Record(id_, data, _is_plain(data, pixels)), (height, width)


def _is_plain(file: bytes, pixels: np.ndarray) -> bool:
    """Whether the fast decoder gives these very pixels."""
    if not file.startswith(_PLAIN):
        return False
    try:
        return bool(np.array_equal(decode_plain(file), pixels))
    except DataError:
        return False


def _add(digest: Any, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)


class _Ended(Exception):
    """The command ends: what is half-written is of no use."""


_shared: list[Synchronized] = []
"""Of a process of the pool: photographs that all of it have done, and whether to end."""


def _begin(*shared: Synchronized) -> None:
    follow_parent()
    _shared[:] = shared


def _write_in_pool(task: Task, folder: Path) -> None:
    count, ended = _shared

    def step() -> None:
        if ended.value:
            raise _Ended
        with count.get_lock():
            count.value += 1

    write_shard(task, folder, step)
