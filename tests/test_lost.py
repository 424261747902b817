"""Lost pixels are found, also in JPEGs; what is only black is not lost."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from zmar_jax.config import NightConfig
from zmar_jax.data.masks import lost_pixels
from zmar_jax.data.night import draw_scene, night, whole
from zmar_jax.imaging.lost import fill, find_lost

NIGHT = NightConfig(bright_share=0, frames=0, hot=0, jpeg=0, dimming=(4, 12))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def photographs() -> dict[str, np.ndarray]:
    return {
        "coffee": skimage.data.coffee(),
        "chelsea": skimage.data.chelsea(),
        "astronaut": skimage.data.astronaut(),
    }


def darkened(name: str, seed: int) -> np.ndarray:
    photo = photographs()[name]
    return night(photo, draw_scene(seed, NIGHT), whole(*photo.shape[:2]))[0]


NAMES = ("coffee", "chelsea", "astronaut")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_lost_pixels_are_found_exactly(name: str, seed: int) -> None:
    dark = darkened(name, seed)
    lost = lost_pixels(seed, *dark.shape[:2])
    dark[lost] = 0
    found = find_lost(dark)
    assert not found.compressed
    missed, wrong = (lost & ~found.mask).mean(), (found.mask & ~lost & dark.any(-1)).mean()
    assert missed < 0.01
    assert wrong == 0


@pytest.mark.parametrize("quality", [95, 75])
@pytest.mark.parametrize("name", NAMES)
def test_lost_pixels_of_a_jpeg_are_found(name: str, quality: int) -> None:
    photo = (photographs()[name] // 4 + 8).astype(np.uint8)
    lost = lost_pixels(1, *photo.shape[:2])
    photo[lost] = 0
    found = find_lost(jpeg(photo, quality))
    assert found.compressed
    both, either = (found.mask & lost).sum(), (found.mask | lost).sum()
    assert both > (0.8 if quality == 95 else 0.6) * either


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quality", [None, 95, 75])
def test_a_dark_picture_has_lost_none(name: str, seed: int, quality: int | None) -> None:
    dark = darkened(name, seed)
    assert find_lost(jpeg(dark, quality) if quality else dark).share == 0


def letterbox(image):
    image[:50] = image[-50:] = 0


def lens(image):
    h, w, _ = image.shape
    y, x = np.ogrid[:h, :w]
    image[(y - h / 2) ** 2 + (x - w / 2) ** 2 > (h / 2) ** 2] = 0


def thin_border(image):
    image[:16] = image[-16:] = 0
    image[:, :16] = image[:, -16:] = 0


def black_background(image):
    image[:, : image.shape[1] // 2] = 0


def crushed(image):
    np.copyto(image, np.where(image > 9, image - 9, 0))


def a_time_stamp(image):
    Image.fromarray(image)
    image[-30:-20, 20:200:9] = 0


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("change", [letterbox, lens, thin_border, black_background, crushed])
def test_what_is_black_is_not_lost(change, quality: int | None) -> None:
    dark = darkened("coffee", 1)
    change(dark)
    assert find_lost(jpeg(dark, quality) if quality else dark).share == 0


@pytest.mark.parametrize("change", [letterbox, lens, thin_border])
def test_lost_pixels_are_found_beside_a_frame(change) -> None:
    dark = darkened("coffee", 1)
    lost = lost_pixels(3, *dark.shape[:2])
    dark[lost] = 0
    framed = np.ones_like(dark)
    change(framed)
    dark[framed == 0] = 0
    frame, mask = framed[..., 0] == 0, find_lost(dark).mask
    assert (mask & frame).mean() < 0.02
    assert (lost & ~frame & ~mask).mean() < 0.02


def test_a_few_lost_pixels_of_a_bright_picture_are_found() -> None:
    photo = skimage.data.coffee() // 2 + 30
    rng = np.random.default_rng(0)
    lost = np.zeros(photo.shape[:2], bool)
    for y, x in rng.integers(0, 390, (60, 2)):
        lost[y : y + 8, x : x + 8] = True
    photo[lost] = 0
    np.testing.assert_array_equal(find_lost(photo).mask, lost)


def test_sixteen_bits_are_as_eight() -> None:
    dark = darkened("coffee", 2)
    dark[lost_pixels(2, *dark.shape[:2])] = 0
    np.testing.assert_array_equal(
        find_lost(dark).mask, find_lost(dark.astype(np.uint16) * 257).mask
    )


@pytest.mark.parametrize("value", [0, 1, 255])
def test_one_colour_has_lost_none(value: int) -> None:
    assert find_lost(np.full((40, 60, 3), value, np.uint8)).share == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_guess_is_made_of_what_is_around(dtype: type) -> None:
    """Of a ramp little is guessed wrongly; what is there stays, and a guess is never zero."""
    photo = np.tile(np.arange(256, dtype=dtype)[:, None, None], (1, 64, 3))
    photo = photo * dtype(np.iinfo(dtype).max // 255)
    lost = lost_pixels(3, *photo.shape[:2])
    filled = fill(np.where(lost[..., None], dtype(0), photo), lost)
    assert (filled.dtype, filled.shape) == (photo.dtype, photo.shape)
    np.testing.assert_array_equal(filled[~lost], photo[~lost])
    assert filled[lost].all()
    off = np.abs(filled[lost].astype(float) - photo[lost]) / np.iinfo(dtype).max
    assert off.mean() < 0.01
    assert off.max() < 0.15


def test_where_nothing_or_all_is_lost_nothing_is_guessed() -> None:
    image = darkened("coffee", 0)[:32, :32]
    for lost in (np.zeros((32, 32), bool), np.ones((32, 32), bool)):
        np.testing.assert_array_equal(fill(image, lost), image)


def test_a_guess_among_black_pixels_is_not_zero() -> None:
    lost = np.zeros((16, 16), bool)
    lost[4:8, 4:8] = True
    assert (fill(np.zeros((16, 16, 3), np.uint8), lost)[lost] == 1).all()
