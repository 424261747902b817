"""PSNR and SSIM: the release's numbers, definitions written out, and what is refused."""

import math

import golden
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from zmar_jax.imaging import metrics
from zmar_jax.imaging.metrics import PROTOCOLS, score

both = pytest.mark.parametrize("case", [0, 1])
every = pytest.mark.parametrize("protocol", PROTOCOLS)


def pair(case: int) -> tuple[np.ndarray, np.ndarray]:
    file = golden.load("metrics")
    return file[f"a_{case}"], file[f"b_{case}"]


@both
def test_the_release_test_protocol(case: int) -> None:
    file, got = golden.load("metrics"), score(*pair(case))
    assert got.psnr == pytest.approx(file[f"psnr_{case}"].item(), rel=1e-9)
    assert got.ssim == pytest.approx(file[f"ssim_{case}"].item(), rel=1e-9)


@both
def test_the_release_validation_protocol(case: int) -> None:
    file, got = golden.load("metrics"), score(*pair(case), "validation")
    assert got.psnr == pytest.approx(file[f"val_psnr_{case}"].item(), rel=1e-9)
    assert got.ssim == pytest.approx(file[f"val_ssim_{case}"].item(), rel=1e-6)


@both
def test_rf_ssim_is_a_gaussian_over_the_valid_region(case: int) -> None:
    """Written out with sliding windows: no library's filter, no border."""
    a, b = pair(case)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def window(x: np.ndarray) -> np.ndarray:
        return np.einsum("hwcij,ij->hwc", sliding_window_view(x, (11, 11), axis=(0, 1)), kernel)

    x, y = a.astype(float), b.astype(float)
    ma, mb = window(x), window(y)
    va, vb, cov = window(x * x) - ma**2, window(y * y) - mb**2, window(x * y) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert score(a, b, "rf").ssim == pytest.approx(ssim.mean(), rel=1e-9)


def test_rf_psnr_sees_what_rounding_hides() -> None:
    gt = np.full((16, 16, 3), 100 / 255)
    restored = gt + 0.3 / 255
    assert score(restored, gt, "rf").psnr == pytest.approx(20 * math.log10(255 / 0.3))
    assert score(restored, gt, "zmar").psnr == math.inf


def test_the_ssim_of_validation_sees_what_rounding_hides() -> None:
    gt, _ = pair(0)
    restored = gt / 255 + np.random.default_rng(0).choice([-0.4, 0.4], gt.shape) / 255
    found = score(restored, gt, "validation")
    assert found.psnr == math.inf
    assert 0.9 < found.ssim < 1 - 1e-5


@every
def test_floats_are_clipped(protocol: metrics.Protocol) -> None:
    a, b = (x / 255 for x in pair(0))
    a[:4] = 1
    beyond = np.where(a == 1, 7.0, a)
    assert score(beyond, b, protocol) == score(a, b, protocol)


@every
def test_bytes_and_floats_score_the_same(protocol: metrics.Protocol) -> None:
    a, b = pair(1)
    got, expected = score(a / 255, b, protocol), score(a, b, protocol)
    assert got.psnr == pytest.approx(expected.psnr, rel=1e-12)
    assert got.ssim == pytest.approx(expected.ssim, rel=1e-12)


@every
def test_the_same_image_is_perfect(protocol: metrics.Protocol) -> None:
    a, _ = pair(0)
    got = score(a, a, protocol)
    assert got.psnr == math.inf
    assert got.ssim == pytest.approx(1)


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_pixel_is_no_score(protocol: metrics.Protocol, value: float) -> None:
    a, b = pair(0)
    broken = a / 255
    broken[3, 4, 1] = value
    got = score(broken, b, protocol, gt_mean=True)
    assert math.isnan(got.psnr)
    assert math.isnan(got.ssim)


@every
@given(gain=st.floats(0.1, 0.9))
def test_gt_mean_undoes_a_gain(protocol: metrics.Protocol, gain: float) -> None:
    gt = np.random.default_rng(0).uniform(0.2, 0.6, (16, 16, 3))
    got = score(gain * gt, gt, protocol, gt_mean=True)
    assert got.psnr > 100
    assert got.ssim == pytest.approx(1)


def test_gt_mean_is_of_the_grey_and_clips() -> None:
    restored, gt = np.full((12, 12, 3), 0.5), np.zeros((12, 12, 3))
    gt[..., 1] = 1.0
    np.testing.assert_allclose(metrics.match_mean(restored, gt), 0.587)
    gt[..., :2] = 1.0
    half = np.where(np.arange(12)[:, None, None] < 6, 0.1, 0.9) * np.ones((12, 12, 3))
    matched = metrics.match_mean(half, gt)
    np.testing.assert_allclose(matched[0], 0.1 * (0.299 + 0.587) / 0.5)
    assert matched.max() == 1


def test_gt_mean_of_a_black_image() -> None:
    black, gt = np.zeros((12, 12, 3)), np.full((12, 12, 3), 0.5)
    assert score(black, gt, "rf", gt_mean=True) == score(black, gt, "rf")


@pytest.mark.parametrize(
    ("restored", "gt", "problem"),
    [
        (np.zeros((16, 16, 3), np.int32), np.zeros((16, 16, 3)), "restored must be uint8 or float"),
        (np.zeros((16, 16)), np.zeros((16, 16)), r"restored must be .* got float64 \(16, 16\)"),
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 4)), "gt must be uint8 or float"),
        (np.zeros((10, 16, 3)), np.zeros((10, 16, 3)), "restored must be at least 11x11"),
        (np.zeros((16, 16, 3)), np.zeros((16, 17, 3)), "must have one shape"),
    ],
)
def test_other_arrays_are_refused(restored: np.ndarray, gt: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        score(restored, gt)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match="one of zmar, validation, rf, got psnr"):
        score(*pair(0), "psnr")  # pyright: ignore[reportArgumentType]
