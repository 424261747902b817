"""Every form of a convolution, on every platform, is the convolution; so are its gradients."""

import functools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from zmar_jax import ops
from zmar_jax.kernels import composed, conv1_dw3, conv3, dense, depthwise, dw3, pad1, tpu, winograd
from zmar_jax.kernels.taps import correlate
from zmar_jax.runtime import compilation

few = settings(max_examples=6, deadline=None)
SHAPE = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
SEED = st.integers(0, 99)


def lax_conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def padded_dw3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return dw3(pad1(x), kernel)


def check_convolution(found: Any, expected: Any, x: np.ndarray, kernel: np.ndarray) -> None:
    """The same values and gradients, of `x`'s precision."""
    cotangent = golden.normal(1, *x.shape[:3], kernel.shape[-1]).astype(x.dtype)

    def results(x: jax.Array, kernel: jax.Array) -> Any:
        values, pulls = zip(*(jax.vjp(f, x, kernel) for f in (found, expected)), strict=True)
        return [(y, *pull(cotangent)) for y, pull in zip(values, pulls, strict=True)]

    with jax.enable_x64(x.dtype == np.float64):
        for a, b in zip(*compilation.jit(results)(x, kernel), strict=True):
            assert a.dtype == x.dtype
            rounding = 1e-5 if x.dtype == np.float32 else 1e-13
            np.testing.assert_allclose(a, b, atol=rounding * max(1, np.abs(b).max()))


DTYPE = st.sampled_from([np.float32, np.float64])


@few
@given(shape=SHAPE, out=st.integers(1, 4), seed=SEED, dtype=DTYPE)
def test_conv3_is_the_convolution(shape: tuple[int, ...], out: int, seed: int, dtype: Any) -> None:
    x, kernel = golden.normal(seed, *shape), golden.normal(seed, 3, 3, shape[-1], out)
    check_convolution(conv3, lax_conv, x.astype(dtype), kernel.astype(dtype))


@few
@given(shape=SHAPE, seed=SEED, dtype=DTYPE)
def test_dw3_is_the_depthwise_convolution(shape: tuple[int, ...], seed: int, dtype: Any) -> None:
    x, kernel = golden.normal(seed, *shape), golden.normal(seed, 3, 3, 1, shape[-1])
    expected = functools.partial(lax_conv, groups=shape[-1])
    check_convolution(padded_dw3, expected, x.astype(dtype), kernel.astype(dtype))


@pytest.mark.parametrize(
    ("conv", "inner"),
    [
        (conv3, 3),
        pytest.param(winograd.conv3, 3, marks=pytest.mark.slow),
        pytest.param(padded_dw3, 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_gradients(conv: Any, inner: int) -> None:
    with jax.enable_x64(True):
        x, kernel = (
            golden.normal(0, *s).astype(np.float64) for s in ((2, 4, 5, 3), (3, 3, inner, 3))
        )
        check_grads(conv, (x, kernel), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


@few
@given(shape=SHAPE, more=st.integers(0, 12), out=st.integers(1, 4), seed=SEED, dtype=DTYPE)
def test_winograd_is_the_convolution(
    shape: tuple[int, ...], more: int, out: int, seed: int, dtype: Any
) -> None:
    b, h, w, c = shape
    x, kernel = golden.normal(seed, b, h + more, w, c), golden.normal(seed, 3, 3, c, out)
    check_convolution(winograd.conv3, lax_conv, x.astype(dtype), kernel.astype(dtype))


@pytest.mark.parametrize("shape", [(2, 20, 25, 16), (1, 31, 33, 17)])
def test_winograd_within_conv3(shape: tuple[int, ...]) -> None:
    x, kernel = golden.normal(0, *shape), golden.normal(1, 3, 3, shape[-1], 20)
    check_convolution(conv3, lax_conv, x, kernel)
    found, expected = (jax.jit(form)(x, kernel) for form in (conv3, winograd.conv3))
    np.testing.assert_array_equal(found, expected)


@few
@given(shape=SHAPE, out=st.integers(1, 4), seed=SEED, dtype=DTYPE)
def test_a_dense_convolution_is_the_two_that_it_is_composed_of(
    shape: tuple[int, ...], out: int, seed: int, dtype: Any
) -> None:
    x = golden.normal(seed, *shape).astype(dtype)
    kernel = golden.normal(seed + 1, shape[-1], out).astype(dtype)
    taps = golden.normal(seed + 2, 3, 3, 1, out).astype(dtype)
    for form in (composed._dense, conv1_dw3):
        check_convolution(
            lambda x, kernel, form=form: form(pad1(x), kernel, taps),
            lambda x, kernel: lax_conv(lax_conv(x, kernel[None, None]), taps, groups=out),
            x,
            kernel,
        )


def test_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    check_convolution(conv3, lax_conv, golden.normal(0, 2, 5, 6, 3), golden.normal(1, 3, 3, 3, 4))


@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("form", [conv3, padded_dw3])
def test_bfloat16_on_a_cpu_is_float32_rounded(form: Any, size: int) -> None:
    x, dy = (golden.normal(i, 1, size, size, 16).astype(jnp.bfloat16) for i in (0, 1))
    kernel = golden.normal(2, 3, 3, 16 if form is conv3 else 1, 16).astype(jnp.bfloat16)

    def results(*arrays: Any) -> Any:
        y, pull = jax.vjp(form, *arrays[:2])
        return y, *pull(arrays[2])

    found = jax.jit(results)(x, kernel, dy)
    exact = jax.jit(results)(*(a.astype(np.float32) for a in (x, kernel, dy)))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # of two roundings half a step apart at most
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=2**-8 * 1e-2)


SIZES = [(6, 40), (40, 6), (192, 128)]


@pytest.mark.parametrize(("form", "rounding"), [(tpu, 3e-6), (winograd, 1e-5)])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_rounding(form: Any, rounding: float, inputs: int, outputs: int) -> None:
    """Written out for a TPU a convolution is as exact as float32, Winograd's a little less.

    Float32 itself is off by 5e-6 on a CPU without AVX-512, which adds one product after the other.
    """
    rng = np.random.default_rng(0)
    shapes = (2, 12, 10, inputs), (3, 3, inputs, outputs), (2, 12, 10, outputs)
    x, kernel, dy = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, kernel, dy)]
        exact, vjp = jax.vjp(lax_conv, *wide[:2])
        exact, weights = np.asarray(exact), np.asarray(vjp(wide[2])[1])
    plain = np.abs(jax.jit(lax_conv)(x, kernel) - exact).max()
    found = jax.jit(form.conv3)(x, kernel)
    assert np.abs(found - exact).max() < max(rounding * exact.std(), plain)
    found = jax.jit(form.conv3_weight_gradient)(pad1(jnp.asarray(x)), dy)
    assert np.abs(found - weights).max() < rounding * weights.std()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_convolution_is_the_weight_gradient(dtype: Any) -> None:
    """What a GPU computes, against what platforms without a form of their own do."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((2, 7, 9, c)), dtype) for c in (5, 3))
    found = correlate(pad1(x), dy, precision=ops.HIGHEST)
    plain = dense._plain_weight_gradient(pad1(x), dy)
    assert (found.shape, found.dtype) == ((3, 3, 5, 3), dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.25
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (found, plain)), 0, tolerance)


def test_winograd_is_for_products_to_save() -> None:
    assert winograd.worthwhile(jnp.zeros((1, 40, 25, 16)))
    assert not winograd.worthwhile(jnp.zeros((1, 40, 25, 3)))
    assert not winograd.worthwhile(jnp.zeros((1, 20, 20, 64)))


@pytest.mark.parametrize(
    ("on", "height"),
    [(depthwise._dw3_gradients, 14), *[(depthwise._dw3_gradients_cpu, n) for n in (1, 14, 31, 80)]],
)
def test_depthwise_gradients(height: int, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all but a CPU; of a CPU by rows; against autodiff of shifted slices."""
    monkeypatch.setattr(depthwise, "_dw3_gradients_cpu", on)
    rng = np.random.default_rng(height)
    x, kernel, dy = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, height + 2, 7, 5), (3, 3, 1, 5), (2, height, 5, 5))
    )

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        taps = [
            x[:, i : i + height, j : j + 5] * ops.channels(kernel[i, j])
            for i in range(3)
            for j in range(3)
        ]
        return functools.reduce(jnp.add, taps)

    found, expected = (jax.vjp(fn, x, kernel)[1](dy) for fn in (dw3, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))
