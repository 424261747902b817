"""NIQE, against what the package iqa-torch 1.2.1 computes (its `_apply_niqe`, of the rounded grey).

To compute them again: `pip install --no-deps iqa-torch==1.2.1`, PyTorch and einops; end
`_apply_niqe` with `.item()`, which NumPy 2.4 wants.
"""

import math

import numpy as np
import pytest
import skimage.data
from scipy.ndimage import gaussian_filter

from zmar_jax.evaluate import niqe as module
from zmar_jax.evaluate.niqe import fits, niqe

EXPECTED = {
    "chelsea": (2.572084, 8.841676, 8.366878, 4.128967),
    "coffee": (4.056148, 11.115891, 7.913677, 8.475357),
    "astronaut": (3.063058, 9.079846, 7.206688, 8.828848),
}
"""Of the photographs of scikit-image as they are; noisy; blurred; and cropped to 204x192."""


def variants(photo: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
    noisy = np.clip(photo + 20 * noise, 0, 255).astype(np.uint8)
    return [photo, noisy, gaussian_filter(photo, (2, 2, 0)), photo[5:197, 7:211]]


def test_it_equals_the_library():
    rng = np.random.default_rng(0)
    names = ("astronaut", "coffee", "chelsea")  # in the order in which noise was drawn
    for name in names:
        photo = getattr(skimage.data, name)()
        noise = rng.standard_normal(photo.shape)
        found = [niqe(picture) for picture in variants(photo, noise)]
        # in smooth areas the library counts rounding as texture
        np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-3, err_msg=name)
        assert found[1] == pytest.approx(EXPECTED[name][1], abs=1e-6)
        assert found[3] == pytest.approx(EXPECTED[name][3], abs=1e-6)


def test_flat_patches_are_left_out():
    photo = skimage.data.astronaut()[:480, :480]
    framed = photo.copy()
    framed[:96], framed[-96:], framed[:, :96], framed[:, -96:] = 0, 255, 0, 255
    seen = np.isfinite(module._features(framed.mean(-1))).all(1).reshape(5, 5)
    assert seen[1:-1, 1:-1].all()
    assert not seen[::4, ::4].any()
    # the library has 25.6: to it the rounding of a flat patch is texture
    assert niqe(framed) == pytest.approx(niqe(photo[96:-96, 96:-96]), abs=0.1)


def test_a_picture_without_texture_has_none():
    for level in (0, 7, 255):
        assert math.isnan(niqe(np.full((200, 300, 3), level, np.uint8)))


@pytest.mark.parametrize(
    ("size", "enough"), [((96, 192), True), ((192, 96), True), ((191, 191), False)]
)
def test_two_patches_are_the_least(size, enough):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert fits(*size) == enough
    if enough:
        assert math.isfinite(niqe(picture))
    else:
        with pytest.raises(ValueError, match="two patches of 96x96, got 191x191"):
            niqe(picture)


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        niqe(np.zeros((200, 200, 3)))
    with pytest.raises(ValueError, match="uint8"):
        niqe(np.zeros((200, 200), np.uint8))
