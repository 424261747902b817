"""Batches: a function of seed and step alone, whatever workers, hosts and restarts do."""

import dataclasses
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zmar_jax.config import DarkenConfig, DataConfig, MaskConfig
from zmar_jax.data import DataError
from zmar_jax.data.cache import open_cache
from zmar_jax.data.pictures import Pictures, hash_share, photos
from zmar_jax.data.pipeline import Batch, Loader, make_loader
from zmar_jax.evaluate.pairs import read_eight_bits

CROP = 16
SIZES = {"a": (24, 32), "b": (40, 16), "c": (24, 32), "deep/d": (24, 32), "e": (17, 33)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = root / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(
        folder=str(folder), val_folder=str(folder), data_dir=str(tmp_path), batch_size=4, crop=CROP,
        workers=0, seed=3,
    )  # fmt: skip


def first(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_training_batch(config: DataConfig) -> None:
    (batch,) = first(make_loader(config, "train"), 1)
    assert batch.keys() == {"low", "gt", "id"}
    assert batch["low"].shape == batch["gt"].shape == (4, CROP, CROP, 3)
    assert batch["low"].dtype == batch["gt"].dtype == np.uint8
    assert set(batch["id"]) <= set(SIZES)
    assert batch["low"].mean() < batch["gt"].mean() / 2


def test_crops_are_of_the_picture_and_flipped_half_the_time(config: DataConfig, folder) -> None:
    mirrored = 0
    for batch in first(make_loader(config, "train"), 25):
        for name, crop in zip(batch["id"], batch["gt"], strict=True):
            picture = np.asarray(Image.open(folder / f"{name}.png"))
            found = [contains(picture, c) for c in (crop, crop[:, ::-1])]
            assert sum(found) == 1
            mirrored += found[1]
    assert 30 <= mirrored <= 70


def contains(picture: np.ndarray, crop: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(picture, crop.shape)
    return bool((windows[:, :, 0] == crop).all((2, 3, 4)).any())


def test_dihedral_flips_show_all_eight(config: DataConfig, folder: Path) -> None:
    config = dataclasses.replace(config, flip="dihedral")
    picture = np.asarray(Image.open(folder / "a.png"))
    seen = set()
    for batch in first(make_loader(config, "train"), 60):
        for crop in batch["gt"][batch["id"] == "a"]:
            ways = [(k, m) for k in range(4) for m in (False, True)
                    if contains(picture, np.rot90(crop[:, ::-1] if m else crop, k))]  # fmt: skip
            assert len(ways) == 1
            seen.update(ways)
    assert len(seen) == 8


def test_every_epoch_shows_every_picture_once_in_another_order(config: DataConfig) -> None:
    names = np.concatenate([b["id"] for b in first(make_loader(config, "train"), 5)]).tolist()
    epochs = [names[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == sorted(SIZES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seeds_differ_and_repeat(config: DataConfig) -> None:
    batches = first(make_loader(config, "train"), 3)
    same(first(make_loader(config, "train"), 3), batches)
    other = first(make_loader(dataclasses.replace(config, seed=4), "train"), 3)
    assert not np.array_equal(other[0]["low"], batches[0]["low"])


def test_the_same_whatever_the_workers(config: DataConfig) -> None:
    expected = first(make_loader(config, "train"), 5)
    for workers in (1, 2):
        loader = make_loader(dataclasses.replace(config, workers=workers), "train")
        same(first(loader, 5), expected)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_equal_one(config: DataConfig, split, hosts: int) -> None:
    expected = first(make_loader(config, split), 3)
    each = [first(make_loader(config, split, i, hosts), 3) for i in range(hosts)]
    together = [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
        for step in zip(*each, strict=True)
    ]
    same(together, expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_restored_state_goes_on_byte_for_byte(config: DataConfig, workers, steps) -> None:
    # an epoch is 1.25 batches: both states lie in the middle of one
    config = dataclasses.replace(config, workers=workers)
    loader = make_loader(config, "train")
    first(loader, steps)
    state, expected = loader.get_state(), first(loader, 3)
    again = make_loader(dataclasses.replace(config, workers=0), "train")
    again.set_state(state)
    same(first(again, 3), expected)
    loader.set_state(state)
    same(first(loader, 3), expected)


def test_evaluation_gives_every_picture_whole_and_once(config: DataConfig, folder: Path) -> None:
    batches = list(make_loader(config, "val"))
    valid = [(n, gt) for b in batches for n, gt, v in zip(b["id"], b["gt"], b["valid"]) if v]  # noqa: B905
    assert sorted(name for name, _ in valid) == sorted(SIZES)
    for name, gt in valid:
        np.testing.assert_array_equal(gt, np.asarray(Image.open(folder / f"{name}.png")))
    assert [b["valid"].sum() for b in batches] == [3, 1, 1]
    assert all(b["low"].shape[0] == 4 for b in batches)
    same(list(make_loader(config, "val")), batches)


def test_a_validation_picture_is_always_degraded_alike(config: DataConfig) -> None:
    one, four = (
        {n: low for b in make_loader(c, "val") for n, low in zip(b["id"], b["low"], strict=True)}
        for c in (dataclasses.replace(config, batch_size=1), config)
    )
    assert one.keys() == four.keys()
    assert all(np.array_equal(one[name], four[name]) for name in one)


def test_lost_pixels_are_zero_and_nothing_else_changes(config: DataConfig) -> None:
    kept = dataclasses.replace(config, masks=MaskConfig(source="none"))
    pairs = zip(make_loader(config, "val"), make_loader(kept, "val"), strict=True)
    for masked, clean in pairs:
        lost = (masked["low"] != clean["low"]).any(-1)
        assert lost.any()
        assert (masked["low"][lost] == 0).all()


def test_a_mask_folder(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask = np.zeros((10, 10), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "left.png")
    bright = DarkenConfig(exposure=(1.0, 1.0), colour_cast=0.0, photons=1e9, read_noise=0.0)
    masks = MaskConfig(source=str(tmp_path / "masks"))
    config = dataclasses.replace(config, darken=bright, masks=masks)
    for batch in make_loader(config, "val"):
        half = batch["low"].shape[2] // 2
        assert (batch["low"][:, :, :half] == 0).all()
        np.testing.assert_array_equal(batch["low"][:, :, half + 1 :], batch["gt"][:, :, half + 1 :])


# Folders of photographs, and their pixels on disk.


def test_a_split_by_names_is_stable_and_disjoint(config: DataConfig) -> None:
    config = dataclasses.replace(config, val_folder=None, val_share=0.5)
    train, val = photos(config, "train").ids, photos(config, "val").ids
    assert sorted([*train, *val]) == sorted(SIZES)
    assert set(val) == {n for n in SIZES if hash_share(Path(f"{n}.png")) < 0.5}


def test_shares_are_uniform() -> None:
    shares = [hash_share(Path(f"{i:05}.png")) for i in range(2000)]
    assert abs(np.mean(np.array(shares) < 0.1) - 0.1) < 0.02


def test_the_built_in_photographs(tmp_path: Path) -> None:
    config = DataConfig(data_dir=str(tmp_path), workers=0, batch_size=2)
    (batch,) = first(make_loader(config, "train"), 1)
    assert batch["gt"].shape == (2, 160, 160, 3)
    assert len(list(make_loader(config, "val"))) == 2


def test_names_need_not_be_utf_8(config: DataConfig, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(tmp_path / name / f"{name}.png")
    folder = str(tmp_path / name)
    config = dataclasses.replace(config, folder=folder, val_folder=None, val_share=0.0)
    (batch,) = first(make_loader(config, "train"), 1)
    assert set(batch["id"]) == {name}
    (batch,) = make_loader(dataclasses.replace(config, val_folder=folder), "val")
    assert set(batch["id"]) == {name}


def test_pixels_are_decoded_once(config: DataConfig) -> None:
    calls = []
    for _ in range(2):
        make_loader(config, "train", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 5) for i in range(5)]


def test_a_changed_photograph_is_decoded_again(config: DataConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(copy / "a.png")
    config = dataclasses.replace(config, folder=str(copy))
    assert first(make_loader(config, "train"), 1)[0]["gt"].max() == 0
    Image.fromarray(np.full((40, 32, 3), 255, np.uint8)).save(copy / "a.png")
    assert first(make_loader(config, "train"), 1)[0]["gt"].min() == 255


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".png"])
def test_a_repainted_middle_is_another_picture(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = []
    for level in (0, 255):
        pixels[32] = level
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
        found.append(photos(DataConfig(folder=str(tmp_path), val_share=0.0), "train").fingerprint)
    assert found[0] != found[1]


def test_a_cache_pickles_without_its_pixels(config: DataConfig) -> None:
    found = photos(config, "train")
    cache = open_cache(found, config.data_dir, CROP, lambda *_: None)
    picture = cache.picture(0, "gt")
    data = pickle.dumps(cache)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).picture(0, "gt"), picture)


def test_16_bit_photographs_become_8_bit(config: DataConfig, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    levels = np.array([0x00FF, 0x80FF, 0xFFFF], np.uint16)
    Image.fromarray(np.tile(levels, (32, 11))).save(deep / "a.png")
    config = dataclasses.replace(config, folder=str(deep))
    found = first(make_loader(config, "train"), 1)[0]["gt"]
    assert np.unique(found).tolist() == [1, 0x80, 0xFF]  # not 0, which would be a lost pixel
    assert (read_eight_bits(deep / "a.png")[:, :3, 0] == [1, 0x80, 0xFF]).all()


def test_small_pictures_are_all_named_before_training(config: DataConfig) -> None:
    with pytest.raises(
        DataError, match=r"2 picture\(s\) smaller than 24x24 pixels.*b \(16x40\), e"
    ):
        make_loader(dataclasses.replace(config, crop=24), "train")


def test_broken_pictures_are_all_named_and_nothing_stays(config: DataConfig, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("x.png", "y.png"):
        (broken / name).write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"2 picture\(s\) cannot be read.*x\.png.*y\.png"):
        make_loader(dataclasses.replace(config, folder=str(broken)), "train")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_cache_is_cleaned_up(config: DataConfig, tmp_path: Path) -> None:
    def interrupted(i: int) -> tuple[np.ndarray, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(Pictures("p", ("a",), "f", interrupted), tmp_path, 1, lambda *_: None)
    assert list((tmp_path / "cache").iterdir()) == []
    killed = tmp_path / "cache" / ".p-f.0123"
    killed.mkdir()
    os.utime(killed, (0, 0))
    black = Pictures("p", ("a",), "f", lambda i: (np.zeros((8, 8, 3), np.uint8),))
    open_cache(black, tmp_path, 1, lambda *_: None)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["p-f"]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no pixels": lambda cache: (cache / "pixels.bin").unlink(),
    "few pixels": lambda cache: (cache / "pixels.bin").write_bytes(b"few"),
    "no index": lambda cache: (cache / "index.json").unlink(),
    "half an index": lambda cache: (cache / "index.json").write_text("{"),
    "another index": lambda cache: (cache / "index.json").write_text("{}"),
    "a list": lambda cache: (cache / "index.json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_named_until_it_is_removed(tmp_path: Path, kind: str) -> None:
    black = Pictures("p", ("a",), "f", lambda i: (np.zeros((8, 8, 3), np.uint8),))
    open_cache(black, tmp_path, 1, lambda *_: None)
    DAMAGE[kind](tmp_path / "cache" / "p-f")
    with pytest.raises(DataError, match=r"cache/p-f: .* damaged \(.*\); remove this folder"):
        open_cache(black, tmp_path, 1, lambda *_: None)
    shutil.rmtree(tmp_path / "cache" / "p-f")
    assert len(open_cache(black, tmp_path, 1, lambda *_: None)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "no_such_folder", "val_folder": None}, "no_such_folder: cannot be read"),
        ({"folder": None}, "val_folder is given without data.folder"),
        ({"val_folder": None, "val_share": 1.0}, "no photograph falls into the train split"),
        ({"data_dir": "/dev/null"}, "decoded pixels cannot be cached"),
        ({"batch_size": 3}, "must be a multiple of the 2 hosts"),
        ({"masks": MaskConfig(source="no_such_masks")}, "no_such_masks"),
        ({"name": "lol_v1"}, "zmar-jax prepare lol_v1"),
    ],
)
def test_what_cannot_be_loaded_is_said(config: DataConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(dataclasses.replace(config, **change), "train", 0, 2)


_WORKING = """
import multiprocessing, time
from zmar_jax.config import DataConfig
from zmar_jax.data.pipeline import make_loader

if __name__ == "__main__":
    loader = make_loader(
        DataConfig(folder={folder!r}, data_dir={cache!r}, crop=16, workers=1), "train"
    )
    next(loader)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_was_killed(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "working.py"
    script.write_text(_WORKING.format(folder=str(folder), cache=str(tmp_path / "cache")))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    worker = int(process.stdout.readline())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        # nobody may be there to collect it
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
