"""Array functions against their definitions."""

import functools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmar_jax import ops
from zmar_jax.runtime import compilation

few = settings(max_examples=10, deadline=None)
many = settings(max_examples=100, deadline=None)
SIZE = st.integers(1, 9)
SEED = st.integers(0, 2**32 - 1)


@few
@given(st.sampled_from([5, 64]), SEED)
def test_normalize_and_its_gradient(width: int, seed: int) -> None:
    def plain(x: Any) -> Any:
        y = x - x.mean(-1, keepdims=True)
        return y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5)

    with jax.enable_x64(True):
        x, dy = np.random.default_rng(seed).standard_normal((2, 2, 3, width))
        (y, pull), (expected, pull_plain) = (
            jax.vjp(fn, x) for fn in (lambda x: ops.normalize(x, 1e-5), plain)
        )
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pull(dy)[0], pull_plain(dy)[0], rtol=1e-7, atol=1e-9)


@few
@given(b=SIZE, h=st.integers(1, 25), w=SIZE, c=SIZE, seed=SEED)
def test_square_sum_and_its_gradient(b: int, h: int, w: int, c: int, seed: int) -> None:
    """Of heights that eight rows at a time divide, and of others; on CPU, and on all else."""
    x, dy = golden.normal(seed, b, h, w, c), golden.normal(seed + 1, b, c)
    pull = jax.vjp(ops.square_sum, x)[1]
    for form in (ops.square_sum, ops._square_sum):
        np.testing.assert_allclose(form(x), np.square(x).sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pull(dy)[0], 2 * x * dy[:, None, None], rtol=1e-6)
    assert ops.square_sum(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_pixels_that_are_not_finite_are_nan() -> None:
    x = jnp.array([-jnp.inf, -1, 0.5, 2, jnp.inf, jnp.nan])
    nan = np.nan
    np.testing.assert_array_equal(ops.to_pixels(x), [nan, 0, 0.5, 1, nan, nan])


@many
@given(b=SIZE, h=SIZE, w=SIZE, c=SIZE, seed=SEED)
def test_squeeze2_orders_channels_like_pixel_unshuffle(
    b: int, h: int, w: int, c: int, seed: int
) -> None:
    x = golden.normal(seed, b, 2 * h, 2 * w, c)
    y = ops.squeeze2(x)
    assert y.shape == (b, h, w, 4 * c)
    for channel in range(4 * c):
        dy, dx = divmod(channel % 4, 2)
        np.testing.assert_array_equal(y[..., channel], x[:, dy::2, dx::2, channel // 4])
    np.testing.assert_array_equal(ops.unsqueeze2(y), x)


@many
@given(b=SIZE, h=SIZE, w=SIZE, c=SIZE, seed=SEED)
def test_squeeze2_undoes_unsqueeze2(b: int, h: int, w: int, c: int, seed: int) -> None:
    y = golden.normal(seed, b, h, w, 4 * c)
    np.testing.assert_array_equal(ops.squeeze2(ops.unsqueeze2(y)), y)


@few
@given(h=st.integers(1, 20), w=st.integers(1, 20), multiple=st.sampled_from([2, 4, 8]))
def test_padding_reflects_at_the_bottom_and_right(h: int, w: int, multiple: int) -> None:
    x = golden.normal(0, 1, h, w, 2)
    extra = [(0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)]
    y = ops.pad_to_multiple(x, multiple)
    assert all(n % multiple == 0 for n in y.shape[1:3])
    np.testing.assert_array_equal(y, np.pad(x, extra, mode="reflect"))


@few
@given(grid=st.integers(1, 4), h=st.integers(1, 3), w=st.integers(1, 3), c=SIZE, seed=SEED)
def test_mix_cells_is_a_sum_over_cells(grid: int, h: int, w: int, c: int, seed: int) -> None:
    x, a = (
        golden.normal(seed, 2, grid * h, grid * w, c),
        golden.normal(seed, 2, grid, grid, grid, grid),
    )
    expected = np.zeros_like(x)
    for i, j, k, n in np.ndindex(grid, grid, grid, grid):
        cell = x[:, k * h : (k + 1) * h, n * w : (n + 1) * w]
        weight = a[:, i, j, k, n, None, None, None]
        expected[:, i * h : (i + 1) * h, j * w : (j + 1) * w] += weight * cell
    found = compilation.jit(ops.mix_cells)(x, a)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@few
@given(h=st.integers(1, 3), w=st.integers(1, 3), seed=SEED)
def test_cell_attention_is_the_softmax_of_cosines(h: int, w: int, seed: int) -> None:
    mask = (golden.normal(seed, 2, 4 * h, 4 * w, 1) > 0.5).astype(np.float32)
    found = compilation.jit(functools.partial(ops.cell_attention, grid=4))(mask)
    rows = np.zeros((2, 16, h * w))
    for p in range(16):
        top, left = p // 4 * h, p % 4 * w
        rows[:, p] = mask[:, top : top + h, left : left + w, 0].reshape(2, -1)
    rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    weights = np.exp(rows @ rows.swapaxes(1, 2))
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected.reshape(2, 4, 4, 4, 4), rtol=1e-5)


@few
@given(factor=st.sampled_from([2, 4, 8]), h=st.integers(1, 4), w=st.integers(1, 4), seed=SEED)
def test_shrink_is_the_bilinear_resize(factor: int, h: int, w: int, seed: int) -> None:
    x = golden.normal(seed, 2, factor * h, factor * w, 3)

    def pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        resized = jax.image.resize(x, (2, h, w, 3), "bilinear", antialias=False)
        return ops.shrink(x, factor), resized

    found, expected = compilation.jit(pair)(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


LEVELS = st.sampled_from([np.dtype("uint8"), np.dtype("uint16")])


@many
@given(level=LEVELS, seed=SEED, dark=st.integers(0, 12))
def test_network_input_of_integers(level: np.dtype, seed: int, dark: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, np.iinfo(level).max, (1, 4, 6, 3), level, endpoint=True) >> dark
    check_network_input(image.astype(level), image / np.iinfo(level).max)


@many
@given(seed=SEED, top=st.sampled_from([0.0, 0.001, 0.1, 1.0]), double=st.booleans())
def test_network_input_of_floats(seed: int, top: float, double: bool) -> None:
    image = np.random.default_rng(seed).uniform(0, top, (1, 4, 6, 3)).astype(np.float32)
    check_network_input(image.astype(np.float64) if double else image, image)


def check_network_input(image: np.ndarray, x: np.ndarray) -> None:
    """Against the formula in float64; a fraction within rounding of 0.1 may fall on either side."""
    lr, mask = ops.network_input(image)
    x = x.astype(np.float64)
    np.testing.assert_allclose(lr, np.log(np.maximum(x + 1e-3, 1e-3)), atol=1e-6)
    smallest = (x / (x.sum(-1, keepdims=True) + 1e-4)).min(-1, keepdims=True)
    clear = np.abs(smallest - 0.1) > 1e-6
    assert (lr.dtype, mask.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(mask[clear], (smallest <= 0.1)[clear])


def test_black_pixels_and_dead_channels_are_lost() -> None:
    image = np.array(
        [[[0, 0, 0], [255, 255, 255], [90, 80, 0], [1, 1, 1], [100, 100, 20]]], "uint8"
    )
    _, mask = ops.network_input(image[None])
    assert mask.ravel().tolist() == [1, 0, 1, 0, 1]


def test_channels_that_are_no_multiple_of_four_cannot_be_unsqueezed() -> None:
    with pytest.raises(ValueError, match=r"channels must be a multiple of 4, got 6"):
        ops.unsqueeze2(jnp.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 1), (1, 4, 4, 4), (1, 3, 4, 4)])
def test_network_input_wants_an_rgb_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB batch \[B, H, W, 3\], got \("):
        ops.network_input(np.zeros(shape, np.uint8))
