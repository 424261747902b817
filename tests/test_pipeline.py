"""Batches: a function of seed and step alone, whatever workers, hosts and restarts do."""

import dataclasses
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batches import first, same
from PIL import Image

from zmar_jax.config import DarkenConfig, DataConfig, MaskConfig, NightConfig
from zmar_jax.data import DataError
from zmar_jax.data.cache import open_cache
from zmar_jax.data.pictures import hash_share, photos
from zmar_jax.data.pipeline import Batch, make_loader
from zmar_jax.data.sources import Pictures
from zmar_jax.evaluate.pairs import read_eight_bits
from zmar_jax.runtime.stop import remembered
from zmar_jax.train.loop import _reading

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
        workers=0, seed=3, darken=DarkenConfig(night=NightConfig(frames=0)),
    )  # fmt: skip


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
    loader = make_loader(dataclasses.replace(config, workers=2), "train")
    same(first(loader, 5), expected)


@pytest.mark.parametrize("file", ["<stdin>", "/nowhere/a notebook.ipynb"])
def test_a_program_that_is_no_file_loads_by_itself(config: DataConfig, monkeypatch, file) -> None:
    """As `python - < script`; its workers would look for a file of that name."""
    program = types.ModuleType("__main__")
    program.__file__, program.__spec__ = file, None
    monkeypatch.setitem(sys.modules, "__main__", program)
    with pytest.warns(UserWarning, match=f"data.workers=2: the program is {file}, which"):
        loader = make_loader(dataclasses.replace(config, workers=2), "train")
    same(first(loader, 1), first(make_loader(config, "train"), 1))
    program.__file__ = __file__
    make_loader(dataclasses.replace(config, workers=2), "train")


def test_a_process_that_may_start_no_others_loads_by_itself(config, monkeypatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.warns(UserWarning, match="may not start others"):
        make_loader(dataclasses.replace(config, workers=1), "train")


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


@pytest.mark.parametrize(
    ("workers", "steps"), [(0, 1), (0, 3), pytest.param(2, 3, marks=pytest.mark.slow)]
)
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
    bright = DarkenConfig((1.0, 1.0), 0.0, 1e9, 0.0, kind="gain")
    masks = MaskConfig(source=str(tmp_path / "masks"))
    config = dataclasses.replace(config, darken=bright, masks=masks)
    for batch in make_loader(config, "val"):
        half = batch["low"].shape[2] // 2
        assert (batch["low"][:, :, :half] == 0).all()
        np.testing.assert_array_equal(batch["low"][:, :, half + 1 :], batch["gt"][:, :, half + 1 :])


@pytest.mark.parametrize("flip", ["none", "dihedral"])
def test_a_crop_loses_the_pixels_that_its_picture_loses(config, tmp_path, flip) -> None:
    """The picture's colours tell where each pixel of a crop is from."""
    height, width = 40, 56
    y, x = np.mgrid[1 : height + 1, 1 : width + 1]
    lost = np.random.default_rng(0).random((height, width)) < 0.3
    for name, pixels in (
        ("photos/place.png", np.stack([y, x, 0 * x + 255], -1).astype(np.uint8)),
        ("masks/lost.png", 255 * lost.astype(np.uint8)),
    ):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    bright = DarkenConfig((1.0, 1.0), 0.0, 1e9, 0.0, kind="gain")
    masks = MaskConfig(str(tmp_path / "masks"))
    config = dataclasses.replace(
        config, folder=str(tmp_path / "photos"), flip=flip, masks=masks, darken=bright
    )
    corners = set()
    for batch in first(make_loader(config, "train"), 5):
        rows, columns = batch["gt"][..., 0] - 1, batch["gt"][..., 1] - 1
        np.testing.assert_array_equal(~batch["low"].any(-1), lost[rows, columns])
        corners |= set(zip(rows.min((1, 2)).tolist(), columns.min((1, 2)).tolist(), strict=True))
    assert len(corners) > 10


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_crops_lose_the_share_asked_for(config, tmp_path, share) -> None:
    """On average over places and masks, of a picture much larger than the crop."""
    Image.new("RGB", (160, 120), "white").save(tmp_path / "white.png")
    config = dataclasses.replace(
        config, folder=str(tmp_path), masks=MaskConfig(share=(share, share)), batch_size=100,
        darken=DarkenConfig((0.1, 0.1), 0.0, 1e9, 0.0, kind="gain"),
    )  # fmt: skip
    (batch,) = first(make_loader(config, "train"), 1)
    lost = (~batch["low"].any(-1)).mean((1, 2))
    assert lost.mean() == pytest.approx(share, abs=0.1)
    assert len(set(lost.tolist())) > 50


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
        make_loader(config, "train", progress=lambda *said: calls.append(said))
    assert calls == [("decoding pictures, once", i + 1, 5) for i in range(5)]


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
    (picture,) = cache.read(0)
    data = pickle.dumps(cache)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).read(0)[0], picture)


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
    killed = tmp_path / "cache" / ".p-f.0123.tmp"
    killed.mkdir()
    os.utime(killed, (0, 0))
    black = Pictures("p", ("a",), "f", lambda i: (np.zeros((8, 8, 3), np.uint8),))
    open_cache(black, tmp_path, 1, lambda *_: None)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["p-f"]


def test_ctrl_c_is_heard_between_two_pictures(tmp_path: Path) -> None:
    read: list[int] = []

    def asked(i: int) -> tuple[np.ndarray, ...]:
        read.append(i)
        signal.raise_signal(signal.SIGINT)
        return (np.zeros((8, 8, 3), np.uint8),)

    with remembered(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        open_cache(Pictures("p", ("a", "b"), "f", asked), tmp_path, 1, _reading(print))
    assert read == [0]
    assert list((tmp_path / "cache").iterdir()) == []


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


# Pairs.


def put(path: Path, level: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


@pytest.fixture
def pairs(config: DataConfig, tmp_path: Path) -> DataConfig:
    """Of pictures of one level each: 10 n, and its ground truth 10 n + 5."""
    for n in range(1, 9):
        put(tmp_path / "pairs" / "LQ" / f"{n}_low.png", 10 * n)
        put(tmp_path / "pairs" / "HQ" / f"{n}.bmp", 10 * n + 5)
    return dataclasses.replace(
        config, name="pairs", folder=str(tmp_path / "pairs"), val_folder=None, val_share=0.5,
        masks=MaskConfig(source="none"),
    )  # fmt: skip


def levels(batches: list[Batch]) -> dict[str, tuple[int, int]]:
    """Of each picture, low and gt, which have one level each."""
    return {
        str(id_): (int(low.max()), int(gt.min()))
        for batch in batches
        for id_, low, gt in zip(batch["id"], batch["low"], batch["gt"], strict=True)
    }


def test_own_pairs_are_trained_on_as_they_are(pairs: DataConfig) -> None:
    trained = levels(first(make_loader(pairs, "train"), 8))
    validated = levels(list(make_loader(pairs, "val")))
    assert trained.keys().isdisjoint(validated)
    found = trained | validated
    assert found == {f"{n}_low": (10 * n, 10 * n + 5) for n in range(1, 9)}


def test_own_pairs_may_lose_pixels(pairs: DataConfig) -> None:
    masked = dataclasses.replace(pairs, masks=MaskConfig())
    (batch,) = first(make_loader(masked, "train"), 1)
    lost = ~batch["low"].any(-1)
    assert 0.02 < lost.mean() < 0.8
    assert batch["gt"].min() > 0


def test_own_pairs_in_two_folders_of_any_name(pairs: DataConfig, tmp_path: Path) -> None:
    expected = levels(list(make_loader(pairs, "val")))
    (tmp_path / "pairs" / "LQ").rename(tmp_path / "here")
    (tmp_path / "pairs" / "HQ").rename(tmp_path / "there")
    apart = dataclasses.replace(
        pairs, folder=str(tmp_path / "here"), gt_folder=str(tmp_path / "there")
    )
    assert levels(list(make_loader(apart, "val"))) == expected


def test_pairs_in_parts_keep_them(pairs: DataConfig, tmp_path: Path) -> None:
    for i, part in enumerate(("our485", "eval15")):
        put(tmp_path / "lol" / part / "low" / f"{part}.png", 10 + i)
        put(tmp_path / "lol" / part / "high" / f"{part}.png", 100 + i)
    lol, told = dataclasses.replace(pairs, folder=str(tmp_path / "lol")), []
    assert levels(first(make_loader(lol, "train", tell=told.append), 1)) == {"our485": (10, 100)}
    assert told == [f"{tmp_path / 'lol'}: the pairs of our485 in it are taken to train"]
    assert levels(list(make_loader(lol, "val", tell=told.append))) == {"eval15": (11, 101)}
    assert told[1:] == [f"{tmp_path / 'lol'}: the pairs of eval15 in it are taken to validate"]


def test_one_deeper_set_is_told_of_once(pairs: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "pairs").rename(tmp_path / "deep" / "pairs")
    deep, told = dataclasses.replace(pairs, folder=str(tmp_path / "deep")), []
    for split in ("train", "val"):
        make_loader(deep, split, tell=told.append)
    assert told == [f"{tmp_path}/deep: the pairs of pairs in it are taken to train and validate"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "photos"}, r"holds pairs .*say data.name=pairs, or data.clean=true"),
        ({"folder": "{}/LQ", "name": "photos"}, r"LQ: lies beside HQ.*say data.name=pairs"),
        ({"folder": "{}/LQ"}, r"expected one subfolder called low.*found none of them"),
    ],
)
def test_pairs_are_no_photographs_and_photographs_no_pairs(pairs, change, message) -> None:
    filled = {key: value.format(pairs.folder) for key, value in change.items()}
    with pytest.raises(DataError, match=message):
        make_loader(dataclasses.replace(pairs, **filled), "train")


def test_pairs_may_be_called_clean(pairs: DataConfig) -> None:
    clean = dataclasses.replace(pairs, name="photos", clean=True, val_share=0.0)
    assert len(set(levels(first(make_loader(clean, "train"), 4)))) == 16


def test_a_pair_of_two_sizes_is_named(pairs: DataConfig, tmp_path: Path) -> None:
    put(tmp_path / "pairs" / "LQ" / "1_low.png", 10, (24, 20))
    with pytest.raises(DataError, match=r"1_low\.png: 20x24, but .*1\.bmp is 24x20"):
        make_loader(dataclasses.replace(pairs, val_share=0.0), "train")


def test_pictures_that_are_broken_or_small_may_be_left_out(pairs, tmp_path: Path) -> None:
    put(tmp_path / "pairs" / "LQ" / "1_low.png", 10, (24, 20))
    (tmp_path / "pairs" / "HQ" / "2.bmp").write_bytes(b"nonsense")
    for folder, name in (("LQ", "3_low.png"), ("HQ", "3.bmp")):
        put(tmp_path / "pairs" / folder / name, 30, (15, 40))
    strict = dataclasses.replace(pairs, val_share=0.0)
    config = dataclasses.replace(strict, skip_broken=True)
    for _ in range(2):  # from the files, and from the decoded pixels
        told: list[str] = []
        loader = make_loader(config, "train", tell=told.append)
        assert set(levels(first(loader, 4))) == {f"{n}_low" for n in range(4, 9)}
        assert len(told) == 1
        assert told[0].startswith("pairs: 3 picture(s) left out: ")
        (cached,) = (tmp_path / "cache").iterdir()
        assert told[0].endswith(f"; to read them once more remove {cached}")
        for reason in ("1_low.png: 20x24, but", "2.bmp: cannot be read", "3_low (40x15), smaller"):
            assert reason in told[0]
    with pytest.raises(DataError, match=r"cannot be read.*data\.skip_broken=true"):
        make_loader(strict, "train")


def test_leaving_out_nothing_gives_the_same_data(config: DataConfig) -> None:
    loaders = [
        make_loader(dataclasses.replace(config, skip_broken=skip), "train")
        for skip in (True, False)
    ]
    assert loaders[0].fingerprint == loaders[1].fingerprint
    same(first(loaders[0], 2), first(loaders[1], 2))


def test_the_fingerprint_is_of_the_pictures_that_are_left(tmp_path: Path) -> None:
    def opened(*good: str, smallest: int = 1, folder: str = "") -> str:
        def read(i: int) -> tuple[np.ndarray, ...]:
            if "abc"[i] not in good:
                raise DataError("broken")
            return (np.zeros((8, 8 + i, 3), np.uint8),)

        found = Pictures("p", ("a", "b", "c"), "f", read)
        place = tmp_path / (folder or "".join(good))
        return open_cache(found, place, smallest, lambda *_: None, lambda text: None).key

    whole, without_b, without_c = opened(*"abc"), opened(*"ac"), opened(*"ab")
    assert whole == "p-f"
    assert len({whole, without_b, without_c}) == 3
    assert opened(*"ac", folder="elsewhere") == without_b == opened(*"ac")


def test_nothing_left_is_an_error(config: DataConfig, tmp_path: Path) -> None:
    put(tmp_path / "tiny" / "a.png", 9, (8, 8))
    config = dataclasses.replace(config, skip_broken=True, folder=str(tmp_path / "tiny"))
    with pytest.raises(DataError, match="no picture is left"):
        make_loader(config, "train", tell=lambda text: None)
    (tmp_path / "tiny" / "a.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a\.png: cannot be read.*; no picture is left") as raised:
        make_loader(config, "train", tell=lambda text: None)
    assert "skip_broken" not in str(raised.value)


def test_files_that_are_no_pictures_are_told_of_once(config: DataConfig, tmp_path: Path) -> None:
    put(tmp_path / "mixed" / "a.png", 9, (32, 32))
    (tmp_path / "mixed" / "b.dng").write_bytes(b"x")
    config = dataclasses.replace(
        config, folder=str(tmp_path / "mixed"), val_folder=None, val_share=0.0
    )
    told: list[str] = []
    make_loader(config, "train", tell=told.append)
    with pytest.raises(DataError, match="falls into the val split"):
        make_loader(config, "val", tell=told.append)
    assert told == [f"{tmp_path / 'mixed'}: not read as pictures: 1 .dng (b.dng)"]


def test_files_that_are_no_masks_are_told_of_once(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "masks" / "b.psd").write_bytes(b"x")
    config = dataclasses.replace(config, masks=MaskConfig(source=str(tmp_path / "masks")))
    told: list[str] = []
    for split in ("train", "val"):
        make_loader(config, split, tell=told.append)
    assert told == [f"{tmp_path / 'masks'}: not read as pictures: 1 .psd (b.psd)"]


def test_masks_belong_to_the_data(config: DataConfig, tmp_path: Path) -> None:
    put(tmp_path / "masks" / "a.png", 0)
    mask = np.zeros((10, 10), np.uint8)
    loaders = []
    for row in (0, 1, 0):
        Image.fromarray(np.where(np.arange(10)[:, None] == row, 255, mask).astype(np.uint8)).save(
            tmp_path / "masks" / "a.png"
        )
        masks = MaskConfig(source=str(tmp_path / "masks"))
        loaders.append(make_loader(dataclasses.replace(config, masks=masks), "train"))
    begun, other, again = loaders
    assert begun.fingerprint == again.fingerprint != other.fingerprint
    state = begun.get_state()
    again.set_state(state)
    with pytest.raises(DataError, match=r"the masks are not those .*--accept-changes"):
        other.set_state(state)
    other.set_state(state, accept_changes=True)
    other.set_state({key: value for key, value in state.items() if key != "masks"})  # an older run


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
