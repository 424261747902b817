"""Darkening against its formula, the hash behind all draws, and `zmar-jax mask`."""

import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zmar_jax import cli
from zmar_jax.config import DarkenConfig
from zmar_jax.data import hashing
from zmar_jax.data.degrade import darken
from zmar_jax.data.masks import apply_mask, lost_pixels
from zmar_jax.imaging.images import Photo, read_photo, write_photo

SEEDS = st.integers(0, 2**32 - 1)


def test_hashes_never_change():
    assert hashing.fold(0, 0, 0) == 2119557828
    assert hashing.fold(1, 2, 3) == 851442509
    assert hashing.id_seed(0, "a") == 1160917675
    assert hashing.id_seed(7, "scene/ü.png") == 2035414886
    assert hashing.id_seed(0, os.fsdecode(b"\xff\xfe")) == 1620247721


@settings(max_examples=30, deadline=None)
@given(SEEDS, SEEDS, SEEDS)
def test_hashes_are_the_same_in_jax(seed, first, second):
    first, rows = np.uint32(first), np.arange(5)[:, None]
    expected = hashing.fold(seed, first, rows, np.uint32(second) ^ np.arange(7, dtype=np.uint32))
    counters = (jnp.asarray(c) for c in (first, rows))
    made = hashing.fold(
        np.uint32(seed), *counters, jnp.uint32(second) ^ jnp.arange(7, dtype=jnp.uint32), xp=jnp
    )
    assert expected.shape == (5, 7)
    assert np.array_equal(np.asarray(made), expected)


def test_hashes_are_good_random_bits():
    bits = hashing.fold(3, np.arange(128)[:, None], np.arange(128))
    assert len(np.unique(bits)) == bits.size
    digits = hashing.below(bits, 10)
    assert np.bincount(digits.ravel(), minlength=10) == pytest.approx(1638, abs=180)
    flags = (bits[..., None] >> np.arange(32, dtype=np.uint32) & 1).reshape(-1, 32)
    coins = flags.astype(np.float32) * 2 - 1
    # each bit is a fair coin, independent of the others and of the neighbours' bits
    assert np.abs(coins.mean(0)).max() < 0.04
    assert np.abs(coins.T @ coins / len(coins) - np.eye(32)).max() < 0.04
    for step in (1, 128):
        assert np.abs(coins[step:].T @ coins[:-step] / len(coins)).max() < 0.04
    other = hashing.fold(4, np.arange(128)[:, None], np.arange(128))
    assert np.corrcoef(bits.ravel(), other.ravel())[0, 1] == pytest.approx(0, abs=0.04)


def test_normal_quantiles():
    q = hashing.normal_quantiles().astype(np.float64)
    assert q.mean() == pytest.approx(0, abs=1e-6)
    assert q.std() == pytest.approx(1, abs=1e-3)
    assert (q**4).mean() == pytest.approx(3, abs=0.02)


def _linear(values: np.ndarray) -> np.ndarray:
    x = values / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _encoded(light: np.ndarray) -> np.ndarray:
    x = np.clip(light, 0, 1)
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def _plain(exposure: float | tuple[float, float], **rest) -> DarkenConfig:
    """A fixed exposure (or a range) and nothing else, unless given."""
    bounds = exposure if isinstance(exposure, tuple) else (exposure, exposure)
    return DarkenConfig(bounds, **{"colour_cast": 0.0, "photons": 1e9, "read_noise": 0.0, **rest})


@pytest.mark.parametrize("exposure", [1.0, 0.3, 0.03, 0.001])
def test_exposure_is_a_factor_on_linear_light(exposure):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    dark = darken(ramp, 1, _plain(exposure))
    assert dark == pytest.approx(_encoded(exposure * _linear(ramp)), abs=0.6)


def test_exposures_are_log_uniform():
    white = np.full((1, 1, 3), 255, np.uint8)
    values = [darken(white, seed, _plain((0.03, 0.3)))[0, 0, 1] for seed in range(400)]
    log = np.log(_linear(np.array(values)) / 0.03) / np.log(10)
    assert np.histogram(log, 4, (-0.02, 1.02))[0] == pytest.approx(100, abs=30)


def test_the_colour_cast_is_log_normal_on_red_and_blue():
    grey = np.full((1, 1, 3), 128, np.uint8)
    dark = np.array([darken(grey, seed, _plain(0.5, colour_cast=0.2)) for seed in range(400)])
    gains = np.log(_linear(dark) / _linear(darken(grey, 0, _plain(0.5)))).reshape(-1, 3)
    assert not gains[:, 1].any()
    for channel in (0, 2):
        assert gains[:, channel].mean() == pytest.approx(0, abs=0.03)
        assert gains[:, channel].std() == pytest.approx(0.2, rel=0.1)
    assert np.corrcoef(gains[:, 0], gains[:, 2])[0, 1] == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("value", [60, 128, 250])
@pytest.mark.parametrize(("photons", "read_noise"), [(1000.0, 0.0), (1e9, 0.004), (2000.0, 0.003)])
def test_noise_has_the_variance_of_the_formula(value, photons, read_noise):
    patch = np.full((128, 128, 3), value, np.uint8)
    config = _plain(0.4, photons=photons, read_noise=read_noise)
    light = _linear(darken(patch, 5, config))
    signal = 0.4 * _linear(np.array(value))
    expected = np.sqrt(signal / photons + read_noise**2)
    step = (_linear(_encoded(signal) + 0.5) - _linear(_encoded(signal) - 0.5)) / np.sqrt(12)
    assert light.mean() == pytest.approx(signal, abs=0.05 * expected)
    assert light.std() == pytest.approx(np.hypot(expected, step), rel=0.03)
    # neighbours and channels are independent
    noise = (light - light.mean()) / light.std()
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), noise[..., :2].T):
        assert (a * b).mean() == pytest.approx(0, abs=0.03)


def test_darkening_is_a_function_of_the_seed():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    dark = darken(image, 1, DarkenConfig())
    assert np.array_equal(dark, darken(image, 1, DarkenConfig()))
    assert not np.array_equal(dark, darken(image, 2, DarkenConfig()))
    image = np.arange(32 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 48, 3)
    assert zlib.crc32(darken(image, 1, DarkenConfig()).tobytes()) == 1557646571


def test_darkness_says_nothing_about_the_lost_share():
    white = np.full((1, 1, 3), 255, np.uint8)
    dark = [darken(white, seed, _plain((0.03, 0.3)))[0, 0, 1] for seed in range(150)]
    lost = [lost_pixels(seed, 60, 60).mean() for seed in range(150)]
    assert abs(np.corrcoef(dark, lost)[0, 1]) < 0.3


@pytest.mark.parametrize(
    "config",
    [DarkenConfig(), DarkenConfig((1.0, 1.0), 1.0, 1.0, 1.0), DarkenConfig((1e-6, 1e-6), 0.0)],
)
def test_jax_darkens_to_the_same_bytes(config):
    image = np.random.default_rng(0).integers(0, 256, (3, 33, 47, 3), dtype=np.uint8)
    seeds = np.uint32([0, 7, 2**32 - 1])
    made = jax.jit(jax.vmap(lambda i, s: darken(i, s, config, xp=jnp)))(image, seeds)
    assert made.dtype == jnp.uint8
    for a, i, s in zip(np.asarray(made), image, seeds, strict=True):
        assert np.array_equal(a, darken(i, s, config))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photographs of every kind, without zeros."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    rgb = rng.integers(1, 256, (40, 60, 3), dtype=np.uint8)
    deep = rng.integers(1, 65536, (40, 60, 3), dtype=np.uint16)
    grey = np.repeat(rgb[..., :1], 3, 2)
    write_photo(folder / "colour.png", Photo(rgb))
    write_photo(folder / "deep" / "colour.png", Photo(deep))
    write_photo(folder / "grey.tif", Photo(grey, grey=True))
    write_photo(folder / "alpha.png", Photo(rgb, alpha=rgb[..., 0]))
    write_photo(folder / "deep" / "alpha.png", Photo(deep, alpha=deep[..., 0]))
    return folder


NAMES = ("colour", "deep/colour", "grey", "alpha", "deep/alpha")


def _photos(folder: Path) -> dict[str, Photo]:
    return {p.relative_to(folder).with_suffix("").as_posix(): read_photo(p) for p in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_mask_keeps_all_but_the_lost_pixels(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["mask", str(photos), str(out), "--seed", "3"]) == 0
    assert "5 of 5 masked" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["images", "masks"]
    images, masks = _photos(out / "images"), _photos(out / "masks")
    assert sorted(images) == sorted(masks) == sorted(NAMES)
    for name, before in _photos(photos).items():
        after, lost = images[name], masks[name].rgb[..., 0] == 255
        assert masks[name].grey
        assert np.array_equal(after.rgb, apply_mask(before.rgb, lost))
        assert np.array_equal((after.rgb == 0).all(-1), lost)
        assert 0.1 < lost.mean() < 0.4
        assert (after.grey, after.rgb.dtype) == (before.grey, before.rgb.dtype)
        assert (after.alpha is None) == (before.alpha is None)
        assert after.alpha is None or np.array_equal(after.alpha, before.alpha)
    assert not np.array_equal(masks["colour"].rgb, masks["deep/colour"].rgb)


def test_a_copy_depends_on_seed_and_relative_name_alone(photos, tmp_path):
    runs = {}
    for run, (source, seed) in enumerate([(photos, 1), (photos / "colour.png", 1), (photos, 2)]):
        out = tmp_path / str(run)
        options = ["--seed", str(seed), "--darken", "--panel"]
        assert cli.main(["mask", str(source), str(out), *options]) == 0
        runs[run] = {p.relative_to(out).as_posix(): p.read_bytes() for p in _files(out)}
    assert len(runs[0]) == 15
    assert len(runs[1]) == 3
    assert all(runs[0][name] == data for name, data in runs[1].items())
    assert all(runs[0][name] != data for name, data in runs[2].items())


def test_panels_show_the_steps(photos, tmp_path):
    out = tmp_path / "out"
    options = ["--darken", "--panel", "--exposure", "0.2:0.2", "--share", "0.5:0.5"]
    assert cli.main(["mask", str(photos), str(out), *options]) == 0
    images, masks, panels = (_photos(out / name) for name in ("images", "masks", "panels"))
    for name, before in _photos(photos).items():
        after, lost, panel = images[name], masks[name].rgb[..., 0] == 255, panels[name].rgb
        assert after.rgb.dtype == panel.dtype == np.uint8
        assert lost.mean() == pytest.approx(0.5, abs=0.05)
        clean, dark, masked = panel[:, :60], panel[:, 61:121], panel[:, 122:]
        full = np.iinfo(before.rgb.dtype).max
        assert clean == pytest.approx(before.rgb / full * 255, abs=0.5)
        light = np.mean(_linear(dark)) / np.mean(_linear(clean))
        assert light == pytest.approx(0.2, rel=0.1)
        assert np.array_equal(masked, apply_mask(dark, lost))
        assert np.array_equal(masked, after.rgb)
        assert after.grey == before.grey
        assert (dark == dark[..., :1]).all() == before.grey
        assert (after.alpha is None) == (before.alpha is None)


def test_mask_folders_and_failures(photos, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.uint8([[255, 0]])).save(masks / "left.png")
    (photos / "bad.png").write_bytes(b"nonsense")
    arguments = ["mask", str(photos), str(tmp_path / "out"), "--masks", str(masks)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "5 of 6 masked" in captured.out
    assert "bad.png" in captured.err
    images = _photos(tmp_path / "out" / "images")
    assert sorted(images) == sorted(NAMES)
    for photo in images.values():
        assert not photo.rgb[:, :30].any()
        assert photo.rgb[:, 30:].all()
    (masks / "left.png").unlink()
    assert cli.main(arguments) == 1
    assert "no photograph in this folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "{out}", "--share", "0.3"], "--share must be LOW:HIGH"),
        (["{photos}", "{out}", "--share", "0.3:0.1"], "share must be a range, low to high"),
        (["{photos}", "{out}", "--share", "0.3:nan"], "share must be from 0.0 to 0.95"),
        (["{photos}", "{out}", "--share", "0.3:0.4", "--masks", "m"], "leave it or --masks out"),
        (["{photos}", "{out}", "--exposure", "0.1:0.2"], "--exposure needs --darken"),
        (["{photos}", "{out}", "--exposure", "0:1", "--darken"], "exposure must be from 1e-06"),
        (["{photos}", "{out}", "--seed", "-1"], "--seed must be 0 or more"),
        (["{photos}", "{out}", "--masks", "{out}/masks"], "lies in the output folder"),
        (["{photos}", "{out}", "--masks", "no_such"], "no_such"),
        (["{photos}", "{photos}/masked"], "lies in the input folder"),
        (["{photos}", "{photos}/colour.png"], "lies in the input folder"),
        (["{photos}/colour.png", "{photos}/colour.png"], "is to be a folder"),
        (["no_such", "{out}"], "no_such"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message, photos, tmp_path, capsys):
    before = {path: path.read_bytes() for path in _files(photos)}
    filled = [a.format(photos=photos, out=tmp_path / "out") for a in arguments]
    assert cli.main(["mask", *filled]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1
    assert {path: path.read_bytes() for path in _files(photos)} == before
    assert not _files(tmp_path / "out")


def test_inputs_are_never_overwritten(photos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").symlink_to(photos)
    assert cli.main(["mask", str(photos), str(tmp_path / "out")]) == 1
    assert "would overwrite the input" in capsys.readouterr().err
