"""Brightening to white: what it does to pixels, and that whoever feeds a model with such a white
point does it."""

import dataclasses
from pathlib import Path

import golden
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zmar_jax import torch_port
from zmar_jax.config import (
    PRESETS,
    Config,
    ConfigError,
    DarkenConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from zmar_jax.data.degrade import darken
from zmar_jax.data.pipeline import make_loader
from zmar_jax.evaluate.network import Network, Sampling
from zmar_jax.exposure import apply_gain, brightest, expose, gain
from zmar_jax.images import turn
from zmar_jax.restore import Restorer
from zmar_jax.sharding import make_mesh
from zmar_jax.validation import Validator
from zmar_jax.weights import Weights, load_weights, save_weights

TINY = PRESETS["tiny"]
EXPOSED = dataclasses.replace(TINY, white_point=1.0)
pictures = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)),
)


def dark_picture(height: int = 24, width: int = 32) -> np.ndarray:
    low = np.random.default_rng(0).integers(1, 60, (height, width, 3), np.uint8)
    low[4:9, 6:20] = 0
    return low


@given(pictures, st.sampled_from([0.5, 0.99, 1.0]))
def test_zeros_and_only_these_stay_zero(image: np.ndarray, white_point: float) -> None:
    bright = expose(image, white_point)
    assert (bright.shape, bright.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(bright == 0, image == 0)
    assert (bright >= image).all()


@given(pictures)
def test_the_brightest_becomes_white_and_order_stays(image: np.ndarray) -> None:
    bright = expose(image, 1.0)
    assert bright.max() == (np.iinfo(image.dtype).max if image.any() else 0)
    order = np.argsort(image, axis=None)
    assert (np.diff(bright.ravel()[order].astype(int)) >= 0).all()


@given(pictures, st.tuples(*[st.floats(0.1, 1)] * 3))
def test_the_brightest_pixels_tell_the_gain(image: np.ndarray, cast: tuple[float, ...]) -> None:
    def seen(image: np.ndarray) -> np.ndarray:
        return (image * np.array(cast)).astype(image.dtype)

    assert gain(seen(brightest(image)), 1.0) == gain(seen(image), 1.0)


def test_the_brightest_pixels_are_a_hundredth_of_each_channel() -> None:
    values = np.random.default_rng(0).permuted(np.tile(np.arange(10_000), (3, 1)), axis=1)
    image = values.T.reshape(100, 100, 3).astype(np.uint16)
    expected = image[(image >= 9_900).any(-1)]
    np.testing.assert_array_equal(brightest(image)[0], expected)


def test_the_brightest_pixels_are_few_and_enough_for_noise() -> None:
    y, x = np.mgrid[:200, :300]
    scene = np.stack([100 + y // 2, 50 + x // 3, (x + y) // 3], -1).astype(np.uint8)
    pixels = brightest(scene)
    assert 600 <= pixels.shape[1] < 3000
    gains = [[gain(darken(a, i, DarkenConfig()), 1.0) for a in (pixels, scene)] for i in range(40)]
    differences = np.diff(np.log(gains))
    assert abs(differences.mean()) < 0.02
    assert abs(differences).max() < 0.15


def test_zero_leaves_the_picture_as_it_is() -> None:
    low = dark_picture()
    assert expose(low, 0.0) is low


def test_light_is_multiplied_and_lost_pixels_do_not_count() -> None:
    """sRGB 128 is 0.2159 of white in linear light, 64 is 0.0513 (IEC 61966-2-1)."""
    image = np.zeros((10, 10, 3), np.uint8)
    image[0, 0] = 128
    image[0, 1] = 64
    assert gain(image, 1.0) == pytest.approx(1 / 0.21586, rel=1e-4)
    assert gain(image, 0.5) == pytest.approx(1 / 0.05127, rel=1e-3)
    assert apply_gain(image, 2.0)[0, 0].tolist() == [176] * 3
    assert expose(image, 0.0001).max() == 255


@pytest.mark.parametrize("size", [(24, 33), (600, 901)])
def test_a_turned_picture_is_exposed_alike(size: tuple[int, int]) -> None:
    low = dark_picture(*size)
    low[-1, -1, 1] = 200  # one pixel alone is white
    expected = gain(low, 1.0)
    for turns in range(4):
        for mirror in (False, True):
            assert gain(turn(low, turns, mirror), 1.0) == expected


def test_the_gain_undoes_the_exposure() -> None:
    """Two exposures of one scene look alike afterwards, but for rounding."""
    scene = np.random.default_rng(1).integers(30, 256, (64, 64, 3), np.uint8)
    bright, dark = (expose(apply_gain(scene, g), 1.0).astype(int) for g in (0.5, 0.1))
    assert abs(bright - dark).max() <= 5


def test_every_format_of_weights_keeps_the_white_point(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, white_point=0.999)
    weights = Weights(golden.params("tiny", 0), config, "safetensors", 0, 0, ())
    for name, compact in (("a.safetensors", False), ("b.safetensors", True), ("orbax", False)):
        save_weights(tmp_path / name, weights, compact=compact)
        assert load_weights(tmp_path / name).config == config
    state = torch_port.to_state_dict(weights.params, config)
    with pytest.raises(torch_port.WeightsError, match="misshapen white_point"):
        torch_port.infer_config({**state, "white_point": np.zeros(2, np.float32)})
    with pytest.raises(torch_port.WeightsError, match="white_point must be from 0"):
        torch_port.infer_config({**state, "white_point": np.full(1, 2, np.float32)})
    with pytest.raises(ConfigError, match="at most 6 decimals"):
        ModelConfig(white_point=0.9999999)


def test_configurations_from_before_have_none() -> None:
    before = to_dict(Config())
    del before["model"]["white_point"]
    assert from_dict(Config, before, "config.yaml") == Config()


def test_restoring_sees_the_brightened_picture() -> None:
    params, low = golden.params("tiny", 0), dark_picture()
    expected = Restorer(TINY, params)(expose(low, 1.0))
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(Restorer(EXPOSED, params)(low), expected)
    network = Network(Weights(params, EXPOSED, "safetensors", 0, 0, ()), 1)
    ((mean, _),) = network.restore([low], Sampling(), network.encode([low]))
    assert np.abs(255 * mean - expected).max() < 0.51


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    scene = np.random.default_rng(2).integers(0, 200, (16, 64, 3), np.uint8)
    scene[:, -4:] = 255  # white, where few crops reach
    Image.fromarray(scene).save(tmp_path / "scene.png")
    folder = str(tmp_path)
    return DataConfig(
        folder=folder, val_folder=folder, data_dir=str(tmp_path / "cache"), batch_size=4, crop=16,
        workers=0,
    )  # fmt: skip


def test_crops_are_exposed_by_their_whole_picture(data: DataConfig) -> None:
    dark, bright = (
        next(make_loader(data, "train", white_point=white_point)) for white_point in (0.0, 1.0)
    )
    np.testing.assert_array_equal(dark["gt"], bright["gt"])
    np.testing.assert_array_equal(dark["low"] == 0, bright["low"] == 0)
    assert dark["low"].max() < 170
    for low, gt in zip(bright["low"], bright["gt"], strict=True):
        # not each by its own brightest pixel: that of most crops is no white
        assert abs(int(low.max()) - int(gt.max())) < 25


def test_validation_exposes_whole_pictures(data: DataConfig) -> None:
    found = []
    for model in (TINY, EXPOSED):
        validator = Validator(Config(model, data, TrainConfig()), make_mesh())
        numbers, ((_, low, restored, _),) = validator(golden.params("tiny", 0))
        found.append((numbers["psnr_input"], low, restored))
    (input_a, low_a, restored_a), (input_b, low_b, restored_b) = found
    np.testing.assert_array_equal(low_a, low_b)
    assert input_a == input_b
    assert (restored_a != restored_b).any()
    np.testing.assert_array_equal(restored_b, Restorer(EXPOSED, golden.params("tiny", 0))(low_b))
