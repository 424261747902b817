"""What a camera, a file format or a frame adds to a dark picture does not undo its restoration."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from zmar_jax.data.sample import sample
from zmar_jax.imaging.images import Photo, read_photo, write_photo
from zmar_jax.restore import Options, Restorer, load_restorer, restore_file
from zmar_jax.runtime import compilation

WITHIN = 1.5
"""dB that a disturbed picture may lose against the undisturbed one."""


USERS_LEVEL = compilation.LLVM_LEVEL


@functools.cache
def shared() -> Restorer:
    """As users get it: pictures of this size take longer to run than to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "LLVM_LEVEL", USERS_LEVEL)
        restorer = load_restorer(memory=8 << 30)
        restorer.programs(400, 600)
    return restorer


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return shared()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((a.astype(float) - b) / 255).mean() + 1e-12))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def white_pixel(image):
    image[100, 300] = 255


def lamp(image):
    image[60:68, 420:428] = 255


def large_lamp(image):
    y, x = np.ogrid[:400, :600]
    image[(y - 60) ** 2 + (x - 460) ** 2 < 20**2] = 255


def time_stamp(image):
    for left in range(440, 580, 20):
        image[372:388, left : left + 12] = (255, 170, 40)


def letterbox(image):
    image[:50] = image[-50:] = 0


def lens(image):
    y, x = np.ogrid[:400, :600]
    image[(y - 200) ** 2 + (x - 300) ** 2 > 290**2] = 0


DISTURBANCES = {
    "one white pixel": white_pixel,
    "a lamp": lamp,
    "a large lamp": large_lamp,
    "a time stamp": time_stamp,
    "a letterbox": letterbox,
    "a round lens": lens,
}


@functools.cache
def undisturbed(lost: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, gt = sample(lost)
    return low, gt, shared()(low)


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("lost", [False, True])
def test_a_disturbance_stays_where_it_is(restorer, name: str, lost: bool) -> None:
    low, gt, expected = undisturbed(lost)
    changed = low.copy()
    DISTURBANCES[name](changed)
    there = (changed == low).all(-1)
    found = restorer(changed)
    assert psnr(found[there], gt[there]) > psnr(expected[there], gt[there]) - WITHIN
    # a lamp stays a lamp, a frame stays black
    added = ~there & (changed.max(-1) == 255)
    if added.sum() > 50:
        assert found[added].max(-1).mean() > 200
    framed = ~there & (changed.max(-1) == 0)
    if framed.any():
        assert found[framed].mean() < 25


@pytest.mark.parametrize("quality", [95, 75])
def test_a_jpeg_is_restored_like_a_png(restorer, quality: int) -> None:
    low, gt, expected = undisturbed(False)
    assert psnr(restorer(jpeg(low, quality)), gt) > psnr(expected, gt) - WITHIN


def test_lost_pixels_are_filled_in_a_jpeg_too(restorer) -> None:
    low, gt, expected = undisturbed(True)
    assert psnr(restorer(jpeg(low, 95)), gt) > psnr(expected, gt) - WITHIN


def test_what_is_transparent_does_not_count(restorer, tmp_path) -> None:
    low, gt, expected = undisturbed(False)
    alpha = np.full(low.shape[:2], 255, np.uint8)
    alpha[:200, :200] = 0
    white = np.where(alpha[..., None], low, np.uint8(255))
    write_photo(tmp_path / "in.png", Photo(white, alpha))
    restore_file(restorer, tmp_path / "in.png", tmp_path / "out.png", Options())
    found, shown = read_photo(tmp_path / "out.png"), alpha > 0
    np.testing.assert_array_equal(found.alpha, alpha)
    assert psnr(found.rgb[shown], gt[shown]) > psnr(expected[shown], gt[shown]) - WITHIN


def test_a_bright_picture_comes_back_as_it_was(restorer) -> None:
    _, gt, _ = undisturbed(False)
    bright = np.clip(gt.astype(int) + 90, 0, 255).astype(np.uint8)
    assert psnr(restorer(bright), bright) > 30


def test_brightness_moves_the_result(restorer) -> None:
    low, _, expected = undisturbed(False)
    darker, brighter = (restorer(low, brightness=b).mean() for b in (0.7, 1.4))
    assert darker < 0.85 * expected.mean()
    assert brighter > 1.15 * expected.mean()


def test_a_mask_says_what_is_lost(restorer) -> None:
    low, _, expected = undisturbed(True)
    lost = ~low.any(-1)
    np.testing.assert_array_equal(restorer(low, mask=lost), expected)
    holes = restorer(low, mask="none")[lost]
    assert holes.mean() < 0.8 * expected[lost].mean()
