"""A folder of photographs as a set of shards (`data.shards`), for sets that are not decoded first.

All is done in a hidden folder beside the set, which becomes the set when every shard is there. What
a killed run has done is kept, and the next one writes the others.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from zmar_jax.data.bars import Bar, quiet
from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import Found, Tell, refuse_pairs, survey
from zmar_jax.data.pictures import hash_share
from zmar_jax.data.shard_writer import Task, Written, remove_notes, write_shards, written
from zmar_jax.data.shards import (
    MANIFEST,
    SPLITS,
    Manifest,
    Part,
    broken_shards,
    read_manifest,
    sizes_file,
)
from zmar_jax.files.errors import errors_as, few
from zmar_jax.files.lock import LockedError, take
from zmar_jax.files.places import local
from zmar_jax.files.replacing import put_back, replace_file, replace_folder, write_whole
from zmar_jax.imaging.images import find_photos

NAME = "photos"
LEAST, MOST = 4 << 20, 64 << 20
"""Bytes of a shard: a 64th of all within these bounds, so that several are written at once."""
SHARDS = 512
"""About the most shards of a set: a training process holds each open."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is made of a folder.

    crop: the largest crop to train on, pixels; photographs with a shorter side are errors.
    val_share: of the photographs, kept for validation, as of `DataConfig`.
    clean: as of `DataConfig`.
    skip_broken: what cannot be read or is too small is left out.
    workers: processes that write; 0 writes in this one.
    shard_bytes: bytes of a shard, if not as `LEAST` and `MOST` say.
    """

    crop: int = 160
    val_share: float = 0.1
    clean: bool = False
    skip_broken: bool = False
    workers: int = 0
    shard_bytes: int | None = None


def prepare_photos(
    source: str | Path,
    data_dir: str | Path,
    options: Options,
    overwrite: bool = False,
    progress: Bar = quiet,
    tell: Tell = lambda text: None,
) -> Manifest:
    """Writes the photographs below `source` to `data_dir`/photos, each as its file is.

    Each is decoded once, to be checked. Of a set that is there already, shards that are missing or
    cut are written again.

    Args:
      overwrite: replace a set of other photographs or options; nothing else is ever replaced.
      tell: called with one line of what is not read, and of what is there already.

    Raises:
      DataError: no photograph, pairs, photographs that are broken or too small, something else at
        `data_dir`/photos, another process that prepares the same, or a disk that is full.
      ImageError: the source cannot be read.
    """
    target = local(data_dir).absolute() / NAME
    if os.path.lexists(target) and not (target / MANIFEST).is_file():
        raise DataError(
            f"{target}: is no set of photographs, so it is not replaced; choose another --data-dir"
        )
    found = _photographs(source, target, options, tell)
    with _workplace(target) as place:
        put_back(target)
        if target.exists() and not overwrite:
            return _complete(found, target, place, options, progress, tell)
        shard_bytes = options.shard_bytes or _shard_bytes(found)
        tasks = list(_plan(found, options, shard_bytes))
        todo = [task for task in tasks if not written(place, task)]
        if len(todo) < len(tasks):
            tell(f"{len(tasks) - len(todo)} of {len(tasks)} shards are there already; going on")
        write_shards(todo, place, options.workers, progress)
        splits = _splits(place, tasks, options.skip_broken)
        source = os.fspath(local(source).absolute())
        manifest = Manifest(
            version("zmar-jax"), source, options.crop, options.val_share, shard_bytes, splits
        )
        _remove_others(place, manifest)
        write_whole(place / MANIFEST, manifest.text())
        replace_folder(place, target)
        remove_notes(target, MANIFEST)
        (target / ".lock").unlink()
    return manifest


def _photographs(source: str | Path, target: Path, options: Options, tell: Tell) -> Found:
    folder = local(source)
    if not folder.is_dir():
        raise DataError(f"{source}: no such folder")
    if not options.clean:
        refuse_pairs(source, survey(source), "say --clean if all of it is clean photographs")
    found = find_photos([folder], skip=target, tell=tell)
    if all(hash_share(name) < options.val_share for _, name in found):
        raise DataError(f"{source}: no photograph is left to train on; lower --val-share")
    return found


def _shard_bytes(found: Found) -> int:
    total = sum(path.stat().st_size for path, _ in found)
    return max(min(max(total // 64, LEAST), MOST), total // SHARDS)


def _plan(found: Found, options: Options, shard_bytes: int) -> Iterator[Task]:
    """The shards of both splits, in order of names; a shard is full as soon as it has its bytes."""
    for split in SPLITS:
        chosen = (f for f in found if (hash_share(f[1]) < options.val_share) == (split == "val"))
        for number, group in enumerate(_groups(chosen, shard_bytes)):
            key = hashlib.blake2b(repr(options.crop).encode(), digest_size=16)
            for name, _, status in group:
                text = f"{name}\n{status.st_size}\n{status.st_mtime_ns}\n"
                key.update(text.encode(errors="surrogateescape"))
            photos = tuple((path, name) for name, path, _ in group)
            file = f"{split}-{number:05d}.array_record"
            yield Task(split, file, photos, options.crop, key.hexdigest())


def _groups(found: Iterable, size: int) -> Iterator[list[tuple[str, str, os.stat_result]]]:
    group, held = [], 0
    for path, name in found:
        status = path.stat()
        group.append((os.fspath(name), os.fspath(path), status))
        held += status.st_size
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def _complete(
    found: Found, target: Path, place: Path, options: Options, progress: Bar, tell: Tell
) -> Manifest:
    """Writes again what a set lacks; DataError where it lacks nothing, or the source is another."""
    manifest = read_manifest(target / MANIFEST)
    shards = {shard.file: shard for part in manifest.splits.values() for shard in part.shards}
    lacking = {shard.file for shard, _ in broken_shards(target, list(shards.values()))}
    if not lacking:
        raise DataError(f"{target}: is prepared already; give --overwrite to prepare it again")
    tell(f"{target}: {len(lacking)} of {len(shards)} shards are missing or cut: writing them again")
    before = dataclasses.replace(options, crop=manifest.crop, val_share=manifest.val_share)
    tasks = [t for t in _plan(found, before, manifest.shard_bytes) if t.file in lacking]
    write_shards(tasks, place, options.workers, progress)
    again = {task.file: _result(place, task).shard for task in tasks}
    if again != {file: shards[file] for file in lacking}:
        raise DataError(
            f"{target}: its photographs are not those of the source any more; give --overwrite to "
            "prepare it again"
        )
    for file in lacking:
        replace_file(place / file, target / file)
    remove_notes(place, MANIFEST)
    return manifest


def _splits(place: Path, tasks: Sequence[Task], skip_broken: bool) -> dict[str, Part]:
    """What is in both splits; writes the files of sizes.

    Raises:
      DataError: photographs are left out that may not be, or none is left to train on.
    """
    splits = {}
    for split in SPLITS:
        mine = [task for task in tasks if task.split == split]
        left_out, sizes, shards = [], [np.zeros((0, 2), np.uint32)], []
        for result in (_result(place, task) for task in mine):
            left_out += result.left_out
            sizes.append(np.array(result.sizes, np.uint32).reshape(-1, 2))
            shards += [result.shard] if result.shard.records else []
        np.save(place / sizes_file(split), np.concatenate(sizes))
        count = sum(shard.records for shard in shards)
        splits[split] = Part(count, _fingerprint(place, mine), tuple(shards), tuple(left_out))
    problems = [each for part in splits.values() for each in part.left_out]
    enough = splits["train"].count > 0
    if problems and not (skip_broken and enough):
        advice = (
            "mend or remove them, or leave them out with --skip-broken; the others are kept"
            if enough
            else "no photograph is left to train on"
        )
        raise DataError(
            f"{len(problems)} photograph(s) cannot be used: {few(problems, '; ')}; {advice}"
        )
    return splits


def _fingerprint(place: Path, tasks: Sequence[Task]) -> str:
    """As of a folder with the same files: `text_digest` of all names, then of all samples.

    Notes are read one by one, as together they may be large.
    """
    digest, joint = hashlib.blake2b(digest_size=8), ""
    for kind in ("ids", "samples"):
        for task in tasks:
            for text in getattr(_result(place, task), kind):
                digest.update(f"{joint}{text}".encode(errors="surrogateescape"))
                joint = "\n"
    return digest.hexdigest()


def _result(place: Path, task: Task) -> Written:
    if found := written(place, task):
        return found
    raise DataError(f"{place / task.file}: was removed meanwhile; run the same command again")


def _remove_others(place: Path, manifest: Manifest) -> None:
    """Removes shards of another plan, empty ones, and what a killed process has half written."""
    mine = {shard.file for part in manifest.splits.values() for shard in part.shards}
    for path in (*place.glob("*.array_record"), *place.glob(".*.partial")):
        if path.name not in mine:
            path.unlink()


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """The hidden folder beside `target`, for this process alone; it stays if there is work in it.

    Errors of the disk are DataErrors.
    """
    place = target.with_name(f".{target.name}.preparing")

    def problem(e: Exception) -> str:
        said = getattr(e, "strerror", None) or " ".join(str(e).split())
        return f"{target}: cannot be prepared ({said}); mend that, and run the same command again"

    with errors_as(DataError, problem, (OSError, RuntimeError)):  # array_record raises the latter
        try:
            lock = take(place)
        except LockedError as e:
            raise DataError(f"{place}: another process is preparing photographs here; wait") from e
        try:
            yield place
        finally:
            if place.exists() and [path.name for path in place.iterdir()] == [".lock"]:
                shutil.rmtree(place)
            lock.release()
