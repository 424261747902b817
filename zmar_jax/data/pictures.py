"""What a split of a dataset holds, before it is decoded: names, and how to read each."""

import functools
import hashlib
import io
import os
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TypeVar

import numpy as np
import skimage.data

from zmar_jax.config import DataConfig
from zmar_jax.data.copies import eight_bits
from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import PairSet, Survey, Tell, choose, refuse_pairs, survey
from zmar_jax.data.hashing import name_digest
from zmar_jax.data.shards import Shards, holds_shards, open_shards
from zmar_jax.data.sources import Pictures, Progress, Split, silent
from zmar_jax.files.places import kept, local
from zmar_jax.imaging.images import find_photos, read_photo, size_text

T = TypeVar("T", bound=Sized)

BUILT_IN: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
    ),
    "val": ("coffee.png", "rocket.jpg"),
}
"""Photographs that come with scikit-image, free to use (see its `skimage.data`)."""
_PAIR = ("low", "gt")
_UNCOMPRESSED = (b"BM", b"II", b"MM")
"""How BMP and TIFF files begin, which pictures are read by, whatever their suffix."""


def _nobody(text: str) -> None:
    pass


def pictures(
    config: DataConfig, split: Split, tell: Tell = _nobody, progress: Progress = silent
) -> Pictures:
    """The split of the dataset that `config` names; the benchmarks validate on their test split.

    Args:
      tell: called with one line of what folders hold that is not read, or is not taken.
      progress: called while shards are fetched from a bucket.

    Raises:
      DataError: a missing folder or dataset, or a split without photographs.
    """
    if config.name == "photos":
        return photos(config, split, tell, progress)
    if config.name == "pairs":
        return pairs(config, split, tell)
    # the benchmarks need tensorflow-datasets, which takes seconds to import
    from zmar_jax.data.prepared import open_prepared

    prepared = open_prepared(config.name, config.data_dir, "train" if split == "train" else "test")
    chosen = range(len(prepared))
    if split == "val" and config.name.startswith("sdsd") and config.sdsd_test_frames:
        chosen = first_of_each_scene(prepared.ids, config.sdsd_test_frames)

    def read(i: int) -> tuple[np.ndarray, ...]:
        _, low, gt = prepared[chosen[i]]
        return low, gt

    ids = tuple(prepared.ids[i] for i in chosen)
    sizes = tuple(prepared.sizes[i] for i in chosen)
    digest = text_digest([prepared.fingerprint, *ids])
    return Pictures(config.name, ids, digest, read, _PAIR, sizes)


def photos(
    config: DataConfig, split: Split, tell: Tell = _nobody, progress: Progress = silent
) -> Pictures:
    """Clean photographs: the built-in ones, or those of the folders that `config` names."""
    folder = _folder_of(config, split)
    if folder is not None and holds_shards(folder):
        found = _in_shards(folder, config, split, progress)
        return Pictures("photos", found.ids, found.fingerprint, found.read, sizes=found.sizes)
    if config.folder is None and config.val_folder is None:
        folder = Path(skimage.data.data_dir)
        found = [(folder / name, Path(name)) for name in BUILT_IN[split]]
    else:
        found = _in_folders(config, split, tell)
    samples = [_sample(path) for path, _ in found]
    ids = tuple(map(photo_id, (name for _, name in found)))
    return Pictures("photos", ids, text_digest([*ids, *samples]), functools.partial(_read, found))


def photo_id(name: Path) -> str:
    """What a photograph is called, by its path relative to its folder."""
    return name.with_suffix("").as_posix()


def _folder_of(config: DataConfig, split: Split) -> str | None:
    return config.val_folder if split == "val" and config.val_folder else config.folder


def _in_shards(folder: str, config: DataConfig, split: Split, progress: Progress) -> Shards:
    """What was prepared as this split; or all that was, where both splits have their own folder."""
    whole = config.val_folder is not None
    found = open_shards(folder, "train" if whole else split, progress)
    share = 0.0 if whole else config.val_share
    if found.val_share != share:
        mend = "leave data.val_folder out" if whole else f"set data.val_share={found.val_share}"
        raise DataError(
            f"{folder}: prepared with --val-share {found.val_share}, where {share} is asked for; "
            f"{mend}, or prepare it with --val-share {share}"
        )
    _not_empty(found.ids, folder, split)
    return found


def pairs(config: DataConfig, split: Split, tell: Tell = _nobody) -> Pictures:
    """Dark pictures and their ground truths, paired by name (`folders.match`)."""
    found = _pairs_in_folders(config, split, tell)
    ids = tuple(id_ for id_, *_ in found)
    samples = [_sample(path) for _, *both in found for path in both]
    read = functools.partial(_read_pair, found)
    return Pictures("pairs", ids, text_digest([*ids, *samples]), read, _PAIR)


def _in_folders(config: DataConfig, split: Split, tell: Tell) -> list[tuple[Path, Path]]:
    folder = _folder_of(config, split)
    if folder is None:
        raise DataError("data.val_folder is given without data.folder: name what to train on")
    if split == "val" and config.val_folder is None:
        tell = _nobody  # it was told when the split to train on was opened
    decoded = kept(config.data_dir) / "cache"  # which may lie among the photographs
    found = find_photos([local(folder)], skip=decoded, tell=tell)
    if local(folder).is_dir() and not config.clean:
        advice = "say data.name=pairs, or data.clean=true if all of it is clean photographs"
        refuse_pairs(folder, survey(folder), advice)
    if config.val_folder is None:
        found = [f for f in found if _falls_into(f[1], config, split)]
    return _not_empty(found, folder, split)


def _pairs_in_folders(config: DataConfig, split: Split, tell: Tell) -> list[tuple[str, Path, Path]]:
    folder = _folder_of(config, split)
    assert folder  # the configuration checks that
    if holds_shards(folder):
        raise DataError(f"{folder}: holds clean photographs in shards; say data.name=photos")
    if config.gt_folder and folder == config.folder:
        both = (local(name) for name in (folder, config.gt_folder))
        seen = Survey((PairSet(".", *both),))
    else:
        seen = survey(folder)
    chosen = choose(folder, seen, ("train",) if split == "train" else ("val", "test"))
    shared = config.val_folder is None and len(seen.sets) == 1
    if split == "val" and shared:
        tell = _nobody  # it was told when the split to train on was opened
    if chosen.place != ".":
        use = "train and validate" if shared else "train" if split == "train" else "validate"
        tell(f"{folder}: the pairs of {chosen.place} in it are taken to {use}")
    found = chosen.match(tell)
    if shared:
        found = [f for f in found if _falls_into(Path(f[0]), config, split)]
    return _not_empty(found, folder, split)


def _falls_into(name: Path, config: DataConfig, split: Split) -> bool:
    return (hash_share(name) < config.val_share) == (split == "val")


def _not_empty(found: T, folder: str, split: Split) -> T:
    if not len(found):
        raise DataError(
            f"{folder}: no photograph falls into the {split} split: add photographs, change "
            "data.val_share, or name a data.val_folder"
        )
    return found


def hash_share(name: Path) -> float:
    """A number in [0, 1) that depends on the name alone, so that a split survives new files."""
    return int.from_bytes(name_digest(name.as_posix(), 8), "big") / 2**64


def _read(found: Sequence[tuple[Path, Path]], i: int) -> tuple[np.ndarray, ...]:
    return (eight_bits(read_photo(found[i][0]).rgb),)


def _read_pair(found: Sequence[tuple[str, Path, Path]], i: int) -> tuple[np.ndarray, ...]:
    _, low, gt = found[i]
    both = tuple(eight_bits(read_photo(path).rgb) for path in (low, gt))
    sizes = [size_text(pixels.shape) for pixels in both]
    if sizes[0] != sizes[1]:
        raise DataError(f"{low}: {sizes[0]}, but {gt} is {sizes[1]}")
    return both


def _sample(path: Path) -> str:
    """Changes with a file's content, whatever its date.

    Of a compressed file the size and both ends tell; a BMP or TIFF may hold pixels as they are,
    and is read whole.
    """
    try:
        with path.open("rb") as file:
            return sample_of(file)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the folder") from e


def sample_of(file: io.BufferedReader | io.BytesIO) -> str:
    """What tells the content of an open file, which is at its beginning, from others."""
    head = file.read(4096)
    size = file.seek(0, os.SEEK_END)
    # 16-bit PNGs, too: pixels of theirs may be cached that were cut, not rounded, to 8 bits
    if head.startswith(_UNCOMPRESSED) or head[12:16] + head[24:25] == b"IHDR\x10":
        file.seek(0)
        return f"whole {hashlib.file_digest(file, 'blake2b').hexdigest()}"
    file.seek(max(size - 4096, 0))
    return f"{size} {hashlib.blake2b(head + file.read()).hexdigest()}"


def first_of_each_scene(ids: Sequence[str], frames: int) -> list[int]:
    """Indices of the first `frames` ids, SCENE/FRAME, of each scene."""
    seen: dict[str, int] = {}
    chosen = []
    for i in sorted(range(len(ids)), key=ids.__getitem__):
        scene = ids[i].rpartition("/")[0]
        seen[scene] = seen.get(scene, 0) + 1
        if seen[scene] <= frames:
            chosen.append(i)
    return chosen


def text_digest(texts: Sequence[str]) -> str:
    return name_digest("\n".join(texts), 8).hex()
