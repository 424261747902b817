"""The plain reference gives the numbers of the PyTorch release (docs/model.md section 10)."""

import dataclasses
import functools
import math
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from zmar_jax import ops, torch_port
from zmar_jax.config import PRESETS, ModelConfig
from zmar_jax.flow import init_actnorm as fast_init_actnorm
from zmar_jax.kernels import conv3
from zmar_jax.models import ZmarSNFlow, notation, param_shapes, reference, reference_init
from zmar_jax.runtime import compilation
from zmar_jax.tiling.shares import Shares
from zmar_jax.torch_port.keys import key_table
from zmar_jax.train.state import init_params as fast_init_params

TINY = PRESETS["tiny"]
CONDITIONS = ("fea_up0", "fea_up1", "fea_up2")
cases = pytest.mark.parametrize(
    "case",
    [
        "tiny_32x48",
        *[pytest.param(c, marks=pytest.mark.slow) for c in ("tiny_40x24", "full_64x96")],
    ],
)


def worst(found: Any, expected: Any, unit: Any = 1.0) -> float:
    """The largest difference, in `unit`s."""
    assert found.shape == expected.shape
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected) / unit))


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """A golden file in NHWC."""
    return {k: golden.nhwc(a) if a.ndim == 4 else a for k, a in golden.load(name).items()}


@functools.cache
def outputs(case: str) -> dict[str, Any]:
    """Conditions, nll, and the image of either latent with its logdet, by the goldens' names."""
    preset, seed = (golden.CASES | golden.FULL_CASES)[case]
    model = ZmarSNFlow(PRESETS[preset], form="reference")
    g, variables = arrays(case), {"params": golden.params(preset, seed)}

    def method(name: str) -> Any:
        return compilation.jit(functools.partial(model.apply, method=name))

    conditions = method("encode")(variables, g["lr"], g["mask"])
    out = {f"enc/{k}": c for k, c in conditions.items()}
    out["nll"] = method("conditional_nll")(variables, g["gt"], conditions, g["noise"])
    decode = method("decode")
    for name, z in (("heat0", 0 * g["z_in"]), ("heat", g["heat"] * g["z_in"])):
        x, logdet = decode(variables, z.astype(np.float32), conditions)
        out |= {f"x_{name}": x, f"logdet_reverse_{name}": logdet}
    return out


@cases
def test_conditions(case: str) -> None:
    g = arrays(case)
    for name in CONDITIONS:
        found = outputs(case)[f"enc/{name}"]
        if f"enc/{name}" in g:
            assert worst(found, g[f"enc/{name}"], g[f"enc/{name}"].std()) <= 1e-4, name
        else:  # the published model's file holds a corner, and statistics
            std = g[f"enc_std/{name}"]
            corner = worst(found[:, :8, :8], g[f"enc_crop/{name}"], std[:, None, None])
            assert corner <= 1e-4, name
            assert worst(found.mean((1, 2)), g[f"enc_mean/{name}"], std) <= 1e-4, name


@cases
def test_flow(case: str) -> None:
    g, found = arrays(case), outputs(case)
    assert worst(found["nll"], g["nll"], g["nll"]) <= 1e-5
    tolerance = 1e-4 if case.startswith("tiny") else 2e-3
    for name in ("heat0", "heat"):
        assert worst(found[f"x_{name}"], g[f"x_{name}"]) <= tolerance, name
        expected = g[f"logdet_reverse_{name}"] - dequantization(g)
        assert worst(found[f"logdet_reverse_{name}"], expected, dequantization(g)) <= 1e-5, name


def dequantization(g: dict[str, np.ndarray]) -> float:
    """log(32) H W, where the release's float32 sums start; our logdets are the flow's alone."""
    return math.log(32) * math.prod(g["gt"].shape[1:3])


@pytest.mark.slow
def test_methods_that_encode_for_themselves() -> None:
    g, v = arrays("tiny_32x48"), {"params": golden.params("tiny", 0)}
    run = functools.partial(ZmarSNFlow(TINY, form="reference").apply, v)

    def methods(gt: Any, lr: Any, mask: Any, noise: Any, z: Any) -> Any:
        latent = run(gt + noise / 32, lr, mask, method="forward")
        image = run(z, lr, mask, method="inverse")
        return latent, image, run(gt, lr, mask, noise, method="nll")

    inputs = [g[name] for name in ("gt", "lr", "mask", "noise", "z_in")]
    (z, logdet), (x, _), nll = compilation.jit(methods)(*inputs[:-1], 0 * inputs[-1])
    assert worst(z, g["z"], g["z"].std()) <= 1e-4
    assert worst(logdet, g["logdet"] + dequantization(g), dequantization(g)) <= 1e-5
    assert worst(x, g["x_heat0"]) <= 1e-4
    assert worst(nll, g["nll"], g["nll"]) <= 1e-5


@pytest.mark.parametrize("i", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 2))])
def test_masks(i: int) -> None:
    g = golden.load("preprocess")
    _, mask = ops.network_input(g[f"u8_{i}"][None])
    found = reference.level_masks(mask, ModelConfig())
    for level, name in zip(found, ("mask", "mask2", "mask4"), strict=True):
        np.testing.assert_array_equal(level, golden.nhwc(g[f"{name}_{i}"]), err_msg=name)


@pytest.mark.slow
def test_gradients() -> None:
    g = golden.load("tiny_gradients")
    inputs = [*ops.network_input(golden.nhwc(g["low"])), golden.nhwc(g["noise"])]

    def loss(params: Any, gt: jax.Array, *inputs: jax.Array) -> jax.Array:
        model = ZmarSNFlow(TINY, form="reference")
        return model.apply({"params": params}, gt, *inputs, method="nll").mean()

    run = compilation.jit(jax.value_and_grad(loss))
    value, tree = run(golden.params("tiny", 3), golden.nhwc(g["gt"]), *inputs)
    np.testing.assert_allclose(value, g["loss"], rtol=1e-5)
    found = torch_port.to_state_dict(tree, TINY)
    expected = {key: g[key] for key in g if key.startswith("grad/")}
    assert expected
    for key, e in expected.items():
        error = np.linalg.norm(found[key.removeprefix("grad/")] - e) / np.linalg.norm(e)
        assert error <= 1e-4, key


def test_actnorms_from_the_first_batch() -> None:
    g = golden.load("tiny_training")
    lr, mask = ops.network_input(golden.nhwc(g["low"]))
    noise = golden.nhwc(np.random.RandomState(5000).rand(*g["gt"].shape).astype(np.float32) - 0.5)
    params = torch_port.to_params(
        {k: 0 * a if ".actnorm." in k else a for k, a in golden.state_dict("tiny", 3).items()}, TINY
    )

    def initialise(params: Any, gt: jax.Array, lr: jax.Array, mask: jax.Array, noise: Any) -> Any:
        conditions = reference.encode(params["encoder"], TINY, lr, mask)
        flow = reference_init.init_actnorm(params["flow"], TINY, gt, conditions, noise)
        return params | {"flow": flow}

    params = compilation.jit(initialise)(params, golden.nhwc(g["gt"]), lr, mask, noise)
    found = torch_port.to_state_dict(params, TINY)
    expected = {key.removeprefix("init/"): g[key] for key in g if key.startswith("init/")}
    assert expected.keys() == {e.key for e in key_table(TINY) if ".actnorm." in e.key}
    for key, e in expected.items():
        assert worst(found[key], e) <= 1e-4, key


def test_an_actnorm_with_a_bias_keeps_its_values() -> None:
    x = golden.normal(0, 2, 3, 4, 5)
    set_one = {"bias": jnp.zeros(5).at[2].set(0.5), "logs": jnp.full(5, 0.1)}
    kept = dict(set_one)
    reference_init.set_actnorm(1e-6)(kept, x)
    for name, values in set_one.items():
        np.testing.assert_array_equal(kept[name], values)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_an_actnorm_is_set_to_what_is_written(eps: float) -> None:
    """Of small numbers, next to which eps counts."""
    x = 1e-4 * golden.normal(0, 2, 3, 4, 5) + 1
    p = {"bias": jnp.zeros(5), "logs": jnp.zeros(5)}
    y = reference_init.set_actnorm(eps)(p, x)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1, 2))) / (wide.std((0, 1, 2)) + eps)
    np.testing.assert_allclose(y, expected, atol=2e-3 * expected.std())


# What goldens hardly see: constants that only count next to small numbers.


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_layer_norm_of_small_numbers(eps: float) -> None:
    x = 1e-3 * golden.normal(0, 2, 3, 4, 6)
    p = {"scale": golden.normal(1, 6), "bias": golden.normal(2, 6)}
    found = reference.layer_norm(p, jnp.asarray(x), eps)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + eps)
    np.testing.assert_allclose(found, normal * p["scale"] + p["bias"], atol=1e-5)


@pytest.mark.parametrize("length", [1e-6, 1e-13])
def test_rows_are_divided_by_their_norm_but_not_by_less_than_is_written(length: float) -> None:
    row = np.array([[0.6 * length, 0.8 * length]], np.float32)
    expected = row.astype(np.float64) / max(length, 1e-12)
    np.testing.assert_allclose(notation.unit_rows(jnp.asarray(row)), expected, rtol=1e-5)


def test_rows_of_zeros_stay_zeros_and_have_a_gradient() -> None:
    assert not np.any(notation.unit_rows(jnp.zeros((2, 3))))
    gradient = jax.grad(lambda x: notation.unit_rows(x).sum())(jnp.zeros((2, 3)))
    assert np.all(np.isfinite(gradient))


def test_resizing_is_the_mean_of_the_centre() -> None:
    x = golden.normal(0, 2, 16, 24, 3)
    for factor in (2, 4, 8):
        near = slice(factor // 2 - 1, factor // 2 + 1)
        cut = x.reshape(2, 16 // factor, factor, 24 // factor, factor, 3)
        expected = cut[:, :, near, :, near].mean((2, 4))
        np.testing.assert_allclose(notation.resize(x, factor), expected, atol=1e-6)


# The first values of the parameters.


SMALL = ModelConfig(dim=4, heads=(1, 2, 1, 4), blocks=(2, 1, 1, 3), flow_steps=3, flow_hidden=16)
UNMASKED = dataclasses.replace(SMALL, mask_attention=False, flow_additional_steps=1)


@pytest.mark.parametrize(
    "config", [SMALL, *(pytest.param(c, marks=pytest.mark.slow) for c in (UNMASKED, ModelConfig()))]
)
def test_the_list_of_parameters_is_the_models_tree(config: ModelConfig) -> None:
    found = {p.path: p.shape for p in reference_init.parameters(config)}
    tree: Any = flatten_dict(param_shapes(config), sep="/")
    assert found == {path: leaf.shape for path, leaf in tree.items()}


def test_training_starts_from_these_distributions() -> None:
    drawn = compilation.jit(functools.partial(fast_init_params, SMALL))(jax.random.key(0))
    tree: Any = flatten_dict(drawn, sep="/")
    for parameter in reference_init.parameters(SMALL):
        distributed(np.asarray(tree[parameter.path]), parameter)


def test_the_reference_draws_from_these_distributions() -> None:
    largest_first = sorted(reference_init.parameters(SMALL), key=lambda p: -math.prod(p.shape))
    some = {type(p.draw): p for p in largest_first if math.prod(p.shape) >= 100}
    assert len(some) == 4
    for key, p in zip(jax.random.split(jax.random.key(0), 4), some.values(), strict=True):
        distributed(np.asarray(p.draw(key, p.shape)), p)


def distributed(values: np.ndarray, parameter: reference_init.Parameter) -> None:
    """Holds them to the parameter's shape and distribution, by spread and ends."""
    path, shape, draw = parameter
    assert values.shape == shape, path
    match draw:
        case reference_init.Constant(value):
            np.testing.assert_array_equal(values, value, err_msg=path)
        case reference_init.Orthogonal():
            for w in values:
                np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=1e-5, err_msg=path)
        case reference_init.Normal(std):
            assert values.std() == pytest.approx(std, rel=4 / math.sqrt(values.size)), path
        case reference_init.Uniform(bound):
            assert np.abs(values).max() <= bound, path
            spread = pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(values.size))
            assert values.std() == spread, path


@pytest.mark.slow
def test_first_values_of_all_parameters() -> None:
    drawn = compilation.jit(functools.partial(reference_init.init_params, SMALL))
    tree = flatten_dict(drawn(jax.random.key(0)), sep="/")
    for parameter in reference_init.parameters(SMALL):
        distributed(np.asarray(tree[parameter.path]), parameter)


# `ZmarSNFlow(form="reference")`.


@pytest.mark.slow
def test_forms_have_the_same_parameters() -> None:
    image, mask = (jax.ShapeDtypeStruct((1, 16, 16, c), jnp.float32) for c in (3, 1))
    shapes = jax.eval_shape(
        ZmarSNFlow(SMALL, form="reference").init, jax.random.key(0), image, image, mask, image
    )
    assert jax.tree.map(lambda a: a.shape, shapes["params"]) == jax.tree.map(
        lambda a: a.shape, param_shapes(SMALL)
    )


def test_what_the_reference_form_refuses() -> None:
    with pytest.raises(ValueError, match="form must be fast or reference, got 'plain'"):
        ZmarSNFlow(SMALL, form="plain")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="takes no shares"):
        ZmarSNFlow(SMALL, shares=Shares("x", 2, 64, 8), form="reference")
    two = dataclasses.replace(SMALL, blocks=(1, 1, 1), heads=(1, 1, 1))
    with pytest.raises(ValueError, match="has the published 3 levels, got 2"):
        ZmarSNFlow(two, form="reference")
    model, params = ZmarSNFlow(SMALL, form="reference"), param_shapes(SMALL)
    image, mask = (jax.ShapeDtypeStruct((1, 16, 16, c), jnp.float32) for c in (3, 1))
    with pytest.raises(ValueError, match="init_actnorm needs form='fast'"):
        jax.eval_shape(lambda *a: fast_init_actnorm(model, *a), params, image, image, mask, image)
    odd = jax.ShapeDtypeStruct((1, 16, 20, 3), jnp.float32)
    encode = functools.partial(model.apply, {"params": params}, method="encode")
    with pytest.raises(ValueError, match="multiples of 8 and at least 16"):
        jax.eval_shape(encode, odd, mask)
    features = {"d2_f": None}
    decode = functools.partial(model.apply, {"params": params}, method="decode")
    with pytest.raises(ValueError, match="takes conditions of `encode`"):
        decode(jnp.zeros((1, 2, 2, 192)), features)


@pytest.mark.slow
def test_forward_mode_is_that_of_the_reference_form() -> None:
    """As README says: it has no gradients of its own, which JAX takes in reverse only."""
    shapes = {"params": param_shapes(SMALL)}
    image, mask = jax.ShapeDtypeStruct((1, 16, 16, 3), float), jnp.zeros((1, 16, 16, 1))

    def nll(variables: Any, x: jax.Array) -> jax.Array:
        model = ZmarSNFlow(SMALL, form="reference")
        return model.apply(variables, x, x, mask, x, method="nll")

    assert "custom_vjp" not in str(jax.make_jaxpr(nll)(shapes, image))
    ones = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(conv3, ones, ones)
