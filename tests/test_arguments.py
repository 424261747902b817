"""What the Python API takes: what is natural, and a clear refusal of the rest."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zmar_jax import ops
from zmar_jax.config import PRESETS
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.restore import Options, Restorer, restore_file
from zmar_jax.restore.arguments import amount, lost_pixels, picture, real, whole
from zmar_jax.restore.programs import RestorePrograms

RGB = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
LOST = np.eye(20, 24, dtype=bool)


def test_natural_forms_of_a_picture(tmp_path):
    write_photo(tmp_path / "a.png", Photo(RGB))
    forms = (RGB, jnp.asarray(RGB), Image.fromarray(RGB), tmp_path / "a.png", f"{tmp_path}/a.png")
    for form in (*forms, Image.fromarray(RGB).convert("RGBA")):
        np.testing.assert_array_equal(picture(form), RGB)
    grey = Image.fromarray(RGB[..., 0].astype(np.uint16) * 256)
    assert picture(grey).dtype == np.uint16
    assert picture(grey).shape == (20, 24, 3)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (RGB.tolist(), TypeError, "a PIL image or a path, got list; of several pictures restore"),
        ([RGB, RGB], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        (RGB / 255, ValueError, r"got float64 \(20, 24, 3\); of floats in \[0, 1\] np.round"),
        (RGB[..., 0], ValueError, r"; of grey np.stack"),
        (RGB[None], ValueError, "; restore pictures one by one"),
        (np.dstack([RGB, RGB[..., :1]]), ValueError, r"; of RGBA image\[..., :3\]"),
        (RGB.astype(int), ValueError, "got int64"),
        (Image.fromarray(np.float32(RGB[..., 0])), ValueError, "got a PIL image of mode F"),
        ("no such.png", ValueError, "no such.png: cannot be read"),
    ],
)
def test_what_is_no_picture(image, kind, message):
    with pytest.raises(kind, match=message):
        picture(image)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_photo(tmp_path / "a.png", Photo(RGB))
    for form in ("~/a.png", Path("~/a.png")):
        np.testing.assert_array_equal(picture(form), RGB)


def test_natural_forms_of_a_mask(tmp_path):
    white = np.where(LOST, np.uint8(255), np.uint8(0))
    Image.fromarray(white).save(tmp_path / "m.png")
    for form in (LOST, LOST * 7, white, Image.fromarray(white), tmp_path / "m.png"):
        np.testing.assert_array_equal(lost_pixels(form, LOST.shape), LOST)
    assert lost_pixels("auto", LOST.shape) is None
    assert not np.any(lost_pixels("none", LOST.shape))
    with pytest.raises(ValueError, match=r"an array or a pathlib\.Path, got 'm\.png'"):
        lost_pixels("m.png", LOST.shape)
    with pytest.raises(ValueError, match="expected a mask"):
        lost_pixels(LOST.T, LOST.shape)


@pytest.mark.parametrize(("white", "dtype"), [(1, "u1"), (255, "u1"), (1, "u2"), (65535, "u2")])
def test_a_picture_of_a_mask_loses_what_its_file_does(white, dtype, tmp_path):
    mask = Image.fromarray(np.where(LOST, white, 0).astype(dtype))
    mask.save(tmp_path / "m.png")
    for form in (mask, tmp_path / "m.png"):
        np.testing.assert_array_equal(lost_pixels(form, LOST.shape), LOST)
    np.testing.assert_array_equal(lost_pixels(Image.fromarray(LOST), LOST.shape), LOST)


@pytest.mark.parametrize("source", ["IMG.0001", "IMG.0001.jpg"])
def test_the_mask_of_a_picture_has_its_whole_name(source, tmp_path):
    (tmp_path / "masks").mkdir()
    size = (48, 64)
    lost = np.eye(*size, dtype=bool)
    Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(tmp_path / source, "png")
    for n, mask in enumerate((~lost, lost)):
        Image.fromarray(mask).save(tmp_path / "masks" / f"IMG.000{n}.png")

    def see(rgb: np.ndarray, mask: np.ndarray, *_: object) -> None:
        np.testing.assert_array_equal(mask, lost)
        raise InterruptedError

    stand_in = SimpleNamespace(config=PRESETS["tiny"], see=see)
    options = Options(mask=tmp_path / "masks")
    with pytest.raises(InterruptedError):
        restore_file(stand_in, tmp_path / source, tmp_path / "out.png", options)  # pyright: ignore[reportArgumentType]


def test_a_picture_without_white_is_no_mask():
    for value, message in ((100, "mask: .*without a pixel above 127"), (255, "loses every pixel")):
        with pytest.raises(ValueError, match=message):
            lost_pixels(
                Image.fromarray(np.where(LOST, value, value * (value > 200)).astype("u1")),
                LOST.shape,
            )


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2)])
def test_whole_numbers_of_any_type(value):
    assert whole("samples", value, 1) == 2
    assert isinstance(whole("samples", value, 1), int)


@pytest.mark.parametrize("value", [None, "2", 2.5, True, float("nan"), float("inf"), [2]])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="samples must be 1 or more, a whole number, got"):
        whole("samples", value, 1)


@pytest.mark.parametrize("value", [None, "0.5", True, np.zeros(2)])
def test_what_is_no_heat(value):
    with pytest.raises(TypeError, match="heat must be a number, 0 or more, got"):
        real("heat", value)


def test_amounts_of_memory():
    assert (amount("16GiB"), amount("800 MB"), amount(16e9)) == (16 << 30, 800_000_000, 16 * 10**9)
    assert amount(None) is None
    for bad in ("16 apples", 0, -1, 0.5, [1]):
        with pytest.raises((ValueError, TypeError), match="memory must be"):
            amount(bad)


def test_a_restorer_takes_them(tmp_path: Path):
    write_photo(tmp_path / "a.png", Photo(RGB))
    restorer = Restorer(PRESETS["tiny"], {}, memory="16GiB", devices=1)
    assert restorer.memory == 16 << 30
    white = RestorePrograms(lambda *_: None, lambda *_: np.ones((1, 24, 24, 3)))
    restorer.programs = lambda height, width: white
    for form in (RGB, Image.fromarray(RGB), tmp_path / "a.png"):
        assert restorer(form, np.float32(0), np.int64(3)).shape == RGB.shape
    for arguments, message in (({"heat": None}, "heat must be"), ({"seed": "1"}, "seed must be")):
        with pytest.raises(TypeError, match=message):
            restorer(RGB, **arguments)
    with pytest.raises(TypeError, match="devices must be 1 or more"):
        Restorer(PRESETS["tiny"], {}, devices=None)  # pyright: ignore[reportArgumentType]


def test_floats_of_255_are_refused():
    with pytest.raises(ValueError, match=r"expected floats in \[0, 1\], got 0 to 254; divide by"):
        ops.network_input(np.clip(RGB, 0, 254)[None].astype(np.float32) * (RGB[None] > 9))
    with pytest.raises(ValueError, match="got -1 to 1"):
        ops.to_unit(np.linspace(-1, 1, 12, dtype=np.float32))
    assert jax.jit(ops.to_unit)(np.float32([255])) == 255  # not known there
    assert np.isnan(ops.to_unit(np.float32([np.nan]))[0])
    np.testing.assert_allclose(ops.to_unit(np.float32([-0.1, 1.2])), [-0.1, 1.2])
