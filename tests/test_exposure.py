"""Brightening before the model: what it does to pixels, that no small part of a picture decides it,
and that whoever feeds a model with a brightness does it."""

import dataclasses
from pathlib import Path

import golden
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from zmar_jax import torch_port
from zmar_jax.config import (
    PRESETS,
    Config,
    ConfigError,
    DataConfig,
    MaskConfig,
    ModelConfig,
    NightConfig,
    from_dict,
    to_dict,
)
from zmar_jax.data.pipeline import make_loader
from zmar_jax.evaluate.network import Network, Sampling
from zmar_jax.imaging.exposure import Exposure, Seen, as_seen, choose, expose, measure
from zmar_jax.imaging.views import View, choose_views
from zmar_jax.restore.restorer import Restorer
from zmar_jax.weights import Weights, load_weights, save_weights

TINY = PRESETS["tiny"]
BRIGHTNESS = 0.34
EXPOSED = dataclasses.replace(TINY, brightness=BRIGHTNESS)
pictures = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)),
)


def dark_picture(height: int = 64, width: int = 96) -> np.ndarray:
    """A noisy dark scene, 2 to 25 of 255, in which a fifth of the pixels is lost."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    scene = 12 + 10 * np.sin(x / 15) * np.cos(y / 11)
    low = np.clip(scene[..., None] + rng.normal(0, 1, (height, width, 3)), 2, 25)
    low = np.round(low).astype(np.uint8)
    lost = np.kron(rng.random((height // 4, width // 4)) < 0.2, np.ones((4, 4), bool))
    low[lost] = 0
    return low


def nothing_lost(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape[:2], bool)


@given(pictures, st.floats(0, 40), st.tuples(*[st.floats(0.4, 2.5)] * 3), st.integers(0, 99))
def test_lost_pixels_and_only_these_are_zero(image, strength, gains, seed) -> None:
    lost = np.random.default_rng(seed).random(image.shape[:2]) < 0.3
    bright = expose(image, lost, Exposure(strength, gains))
    assert (bright.shape, bright.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(~bright.any(-1), lost)


@given(pictures, st.floats(0, 40))
@example(np.full((1, 1, 3), 2, np.uint8), 5e-324)
def test_the_curve_keeps_order_and_white(image, strength) -> None:
    image = np.concatenate([image, np.full_like(image[:, :1], np.iinfo(image.dtype).max)], 1)
    bright = expose(image, nothing_lost(image), Exposure(strength))
    order = np.argsort(image, axis=None)
    assert (np.diff(bright.ravel()[order].astype(int)) >= 0).all()
    assert bright.max() == np.iinfo(image.dtype).max
    assert (bright >= image).all()


@pytest.mark.parametrize("level", [0.02, 0.05, 0.1, 0.2, 0.3])
def test_a_grey_picture_reaches_the_level_of_the_formula(level: float) -> None:
    exposure = choose(np.full((50, 3), level - 1 / 255, np.float32), BRIGHTNESS)
    reached = np.expm1(-exposure.strength * level) / np.expm1(-exposure.strength)
    wanted = min(BRIGHTNESS, 1.32 * BRIGHTNESS * level / (level + 0.013))
    assert reached == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(exposure.gains, 1, rtol=1e-5)


def test_a_bright_picture_stays_as_it_is() -> None:
    image = np.random.default_rng(1).integers(60, 200, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(as_seen(image, BRIGHTNESS).image, image)


def test_all_black_is_left_alone() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    assert measure(black, nothing_lost(black), BRIGHTNESS) == Exposure()


def test_a_cast_is_reduced_and_the_factor_moves_the_level() -> None:
    blocks = np.full((50, 3), 0.05, np.float32) * np.array([2.0, 1.0, 0.7], np.float32)
    red, green, blue = choose(blocks, BRIGHTNESS).gains
    assert red < green < blue
    assert 1.3 < green / red < 2.0
    strengths = [choose(blocks, BRIGHTNESS, f).strength for f in (0.7, 1.0, 1.4)]
    assert strengths == sorted(strengths)
    assert len(set(strengths)) == 3


def one_pixel(image):
    image[10, 20] = 255


def a_lamp(image):
    image[8:16, 40:48] = 255


def a_time_stamp(image):
    image[-8:-4, -40:-4:3] = (255, 200, 0)


def a_letterbox(image):
    image[:8] = image[-8:] = 0


def a_frame_of_one(image):
    image[:8] = image[-8:] = 1


@pytest.mark.parametrize("change", [one_pixel, a_lamp, a_time_stamp, a_letterbox, a_frame_of_one])
def test_no_small_part_decides_the_exposure(change) -> None:
    image = dark_picture(128, 192)
    lost = ~image.any(-1)
    changed = image.copy()
    change(changed)
    before = measure(image, lost, BRIGHTNESS)
    after = measure(changed, lost & ~changed.any(-1), BRIGHTNESS)
    assert after.strength == pytest.approx(before.strength, rel=0.1)
    np.testing.assert_allclose(after.gains, before.gains, rtol=0.03)


def test_hidden_pixels_do_not_count() -> None:
    image = dark_picture()
    hidden = nothing_lost(image)
    hidden[:, :40] = True
    white = image.copy()
    white[hidden] = 255
    lost = ~image.any(-1) & ~hidden
    plain, shown = (as_seen(x, BRIGHTNESS, lost, hidden=hidden).image for x in (image, white))
    np.testing.assert_array_equal(plain[:, 40:], shown[:, 40:])


@pytest.mark.parametrize("size", [(64, 96), (600, 904)])
def test_a_turned_picture_is_exposed_alike(size: tuple[int, int]) -> None:
    low = dark_picture(*size)
    expected = measure(low, ~low.any(-1), BRIGHTNESS)
    for turns in range(4):
        for mirror in (False, True):
            turned = View(turns, mirror).of(low)
            found = measure(turned, ~turned.any(-1), BRIGHTNESS)
            np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-4)
            assert found.strength == pytest.approx(expected.strength, rel=1e-3)


def test_a_published_model_sees_the_picture_as_it_is() -> None:
    low = dark_picture()
    assert as_seen(low, 0.0).image is low
    raised = as_seen(low, 0.0, nothing_lost(low)).image
    assert raised.min() == 1
    np.testing.assert_array_equal(raised, np.maximum(low, 1))


def test_every_format_of_weights_keeps_the_brightness(tmp_path: Path) -> None:
    weights = Weights(golden.params("tiny", 0), EXPOSED, "safetensors", 0, 0, ())
    for name, compact in (("a.safetensors", False), ("b.safetensors", True), ("orbax", False)):
        save_weights(tmp_path / name, weights, compact=compact)
        assert load_weights(tmp_path / name).config == EXPOSED
    state = torch_port.to_state_dict(weights.params, EXPOSED)
    with pytest.raises(torch_port.WeightsError, match="misshapen brightness"):
        torch_port.infer_config({**state, "brightness": np.zeros(2, np.float32)})
    with pytest.raises(torch_port.WeightsError, match="brightness must be from 0"):
        torch_port.infer_config({**state, "brightness": np.full(1, 2, np.float32)})
    with pytest.raises(ConfigError, match="at most 6 decimals"):
        ModelConfig(brightness=0.3333333)


def test_configurations_from_before_have_none() -> None:
    before = to_dict(Config())
    del before["model"]["brightness"]
    assert from_dict(Config, before, "config.yaml") == Config()


def test_restoring_sees_the_brightened_picture() -> None:
    params, low = golden.params("tiny", 0), dark_picture(32, 48)
    seen = as_seen(low, BRIGHTNESS)
    assert 0.1 < seen.lost_share < 0.3
    assert seen.image.all()
    expected = Restorer(TINY, params)(seen.image, views=4)
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(Restorer(EXPOSED, params)(low), expected)
    network = Network(Weights(params, EXPOSED, "safetensors", 0, 0, ()), 1)
    shown = network.see([low])
    sampling = Sampling(views=choose_views("auto", BRIGHTNESS, 0.0))
    ((mean, _),) = network.restore(shown, sampling, network.encode(shown))
    assert np.abs(255 * mean - expected).max() < 0.51


def test_of_a_bright_picture_all_but_lost_pixels_stays() -> None:
    """A guess is no picture: where a pixel is lost, the restoration is taken."""
    shown, restored = np.full((8, 8, 3), 200, np.uint8), np.full((8, 8, 3), 0.25)
    lost = np.eye(8, dtype=bool)
    found = Seen(shown, lost, kept=1.0).keep(restored)
    np.testing.assert_array_equal(found[lost], restored[lost])
    np.testing.assert_allclose(found[~lost], 200 / 255)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    y, x = np.mgrid[:64, :256]
    scene = np.stack([40 + x / 2, 30 + x / 2 + y, 60 + x / 3], -1).astype(np.uint8)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    night = NightConfig(
        (1, 0, 0),
        (8, 12),
        (1, 1),
        bright_share=0,
        highlights=0,
        unevenness=0,
        lamps=0,
        cast=0,
        strong_cast_share=0,
        noise_floor=(0.3, 0.3),
        shot_noise=0,
        hot=0,
        jpeg=0,
        frames=0,
    )
    darken = dataclasses.replace(DataConfig().darken, night=night)
    return DataConfig(
        folder=str(tmp_path), val_folder=str(tmp_path), data_dir=str(tmp_path / "cache"),
        batch_size=8, crop=32, workers=0, darken=darken, masks=MaskConfig(pictures=0.5),
    )  # fmt: skip


def test_crops_are_exposed_by_their_whole_picture(data: DataConfig) -> None:
    """A dark corner of a picture stays a dark corner, in crops as in the whole."""
    loader = make_loader(data, "train", brightness=BRIGHTNESS)
    dark, bright = (next(make_loader(data, "train", brightness=b)) for b in (0.0, BRIGHTNESS))
    np.testing.assert_array_equal(dark["gt"], bright["gt"])
    assert not dark["low"].any(-1).all()
    assert bright["low"].any(-1).all()  # lost pixels are guessed
    levels = [np.median(low[low.any(-1)]) for low in dark["low"]]
    assert max(levels) < 60
    # the scene's left is darker than its right: so are its crops, after they are exposed
    means = [
        (low[low.any(-1)].mean(), gt.mean())
        for low, gt in zip(bright["low"], bright["gt"], strict=True)
    ]
    assert np.corrcoef(np.transpose(means))[0, 1] > 0.5
    examples = loader.batches.examples
    pixels = examples.source.read(0)
    assert examples.exposure(pixels, 7) == examples.exposure(pixels, 7)
    assert examples.exposure(pixels, 7) != examples.exposure(pixels, 8)


def test_a_crop_that_is_the_whole_picture_is_exposed_as_when_it_is_restored(
    data: DataConfig, tmp_path: Path
) -> None:
    """One definition: measured after noise and loss, with the same function."""
    # so little darkened that only lost pixels are black
    night = NightConfig((1, 0, 0), (3, 4), jpeg=0, frames=0, noise_floor=(0.3, 0.3))
    config = dataclasses.replace(
        data, folder=str(tmp_path / "square"), val_folder=None, val_share=0, crop=64, flip="none",
        darken=dataclasses.replace(data.darken, night=night),
    )  # fmt: skip
    (tmp_path / "square").mkdir()
    Image.open(tmp_path / "scene.png").crop((0, 0, 64, 64)).save(tmp_path / "square" / "a.png")
    examples = make_loader(config, "train", brightness=BRIGHTNESS).batches.examples
    dark_examples = dataclasses.replace(examples, brightness=0.0)
    losing = 0
    for seed in range(12):
        low, dark = (e.crop(0, np.random.default_rng(seed))[0] for e in (examples, dark_examples))
        lost = ~dark.any(-1)
        losing += lost.any()
        np.testing.assert_array_equal(low, as_seen(dark, BRIGHTNESS, lost).image)
    assert 0 < losing < 12


def test_a_large_picture_is_measured_at_a_smaller_size(data: DataConfig, monkeypatch) -> None:
    examples = make_loader(data, "train", brightness=BRIGHTNESS).batches.examples
    pixels = examples.source.read(0)
    whole = [examples.exposure(pixels, seed).strength for seed in range(8)]
    monkeypatch.setattr("zmar_jax.data.examples.MEASURED", 64 * 256 // 4)
    smaller = [examples.exposure(pixels, seed).strength for seed in range(8)]
    assert whole != smaller
    np.testing.assert_allclose(smaller, whole, rtol=0.1)
