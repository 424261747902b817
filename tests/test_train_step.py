"""The training step: the release's numbers, what is not finite, and every option."""

import dataclasses
import functools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax import compilation, losses, ops, torch_port
from zmar_jax.config import PRESETS, Config, Remat, TrainConfig
from zmar_jax.models import ZmarSNFlow, param_shapes
from zmar_jax.state import TrainState, create_state, init_params, state_of
from zmar_jax.train import health, init_step, train_step

TINY = PRESETS["tiny"]


# The release's numbers.


def golden_batch(step: int) -> dict[str, np.ndarray]:
    g = golden.load("tiny_training")
    noise = np.random.RandomState(5000 + step).rand(*g["gt"].shape).astype(np.float32) - 0.5
    return {key: golden.nhwc(x) for key, x in (*g.items(), ("noise", noise)) if x.ndim == 4}


@functools.cache
def golden_run() -> tuple[dict[str, np.ndarray], list[float], dict[str, np.ndarray]]:
    """The state dict after the first step, ten losses, and the state dict after ten more."""
    g = golden.load("tiny_training")
    recipe = TrainConfig(
        schedule="constant",
        warmup_steps=0,
        learning_rate=float(g["lr"]),
        weight_decay_encoder=float(g["weight_decay_encoder"]),
    )
    leaves = flatten_dict(golden.params("tiny", 3))
    zeroed = {p: 0 * x if p[-2].startswith("actnorm") else x for p, x in leaves.items()}
    state = state_of(Config(model=TINY, train=recipe), unflatten_dict(zeroed))
    state = compilation.jit(init_step)(state, golden_batch(0), training.KEY)
    first, found = torch_port.to_state_dict(state.params, TINY), []
    step = compilation.jit(train_step)
    for i in range(10):
        state, metrics = step(state, golden_batch(i), training.KEY)
        found.append(float(metrics["loss"]))
    return first, found, torch_port.to_state_dict(state.params, TINY)


def test_golden_losses() -> None:
    np.testing.assert_allclose(golden_run()[1], golden.load("tiny_training")["losses"], rtol=1e-4)


@pytest.mark.parametrize(("part", "count"), [("init", 96), ("final", 7)])
def test_golden_weights(part: str, count: int) -> None:
    g = golden.load("tiny_training")
    expected = {key: g[key] for key in g if key.startswith(f"{part}/")}
    assert len(expected) == count
    state_dict = golden_run()[0 if part == "init" else 2]
    for key, value in expected.items():
        found = state_dict[key.removeprefix(f"{part}/")]
        np.testing.assert_allclose(found, value, atol=1e-5, rtol=1e-5, err_msg=key)


# The first step.


def test_first_step_normalises_and_counts() -> None:
    state = training.initialised(training.config())
    assert (int(state.step), int(state.bad_steps), int(state.bad_steps_total)) == (1, 0, 0)
    low, gt = (ops.to_unit(training.batch(0)[key]) for key in ("low", "gt"))
    noise = jax.random.uniform(jax.random.fold_in(training.KEY, 0), gt.shape) - 0.5
    x = ops.squeeze2(losses.dequantize(gt, noise, 32))
    actnorm = state.params["flow"]["level1"]["additional"]["step"]["actnorm"]
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    np.testing.assert_allclose(actnorm["bias"][0], -mean, rtol=1e-5)
    np.testing.assert_allclose(actnorm["logs"][0], -jnp.log(std + 1e-6), rtol=1e-5)
    assert low.shape == gt.shape


@pytest.mark.slow
def test_first_step_keeps_trained_actnorms() -> None:
    state = training.trained(training.config(), 2)[0]
    again = training.programs()[0](state, training.arrays(training.batch(9)), training.KEY)
    assert training.apart(again.params, state.params) == 0
    assert int(again.step) == 4


def test_first_step_waits_for_a_finite_batch() -> None:
    state = state_of(training.config(), training.params())
    batch = training.arrays(training.batch(0))
    batch["gt"][3, 2, 1, 0] = np.nan
    found = training.programs()[0](state, batch, training.KEY)
    assert (int(found.step), int(found.bad_steps), int(found.bad_steps_total)) == (0, 1, 1)
    unchanged(found, state)


# What one step does.


def unchanged(found: TrainState, expected: TrainState) -> None:
    """Bit for bit, but for the counters."""
    for name in ("params", "ema", "opt_state"):
        pair = getattr(found, name), getattr(expected, name)
        jax.tree.map(np.testing.assert_array_equal, *pair)


# With a pixel of 1e12 the loss is finite, and the gradient's norm overflows.
@pytest.mark.parametrize(
    ("value", "loss_is_finite"), [(np.nan, False), (np.inf, False), (1e12, True)]
)
def test_poisoned_batch_changes_nothing_but_counters(value: float, loss_is_finite: bool) -> None:
    state, step = training.initialised(training.config()), training.programs()[1]
    batch = training.arrays(training.batch(1))
    batch["gt"][5, 3, 2, 1] = value
    bad, metrics = step(state, batch, training.KEY)
    assert np.isfinite(metrics["loss"]) == loss_is_finite
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    assert (int(bad.step), int(bad.bad_steps), int(bad.bad_steps_total)) == (2, 1, 1)
    unchanged(bad, state)

    bad = step(bad, batch, training.KEY)[0]
    assert (int(bad.step), int(bad.bad_steps), int(bad.bad_steps_total)) == (3, 2, 2)
    good, metrics = step(bad, training.arrays(training.batch(3)), training.KEY)
    assert metrics["skipped"] == 0
    assert (int(good.step), int(good.bad_steps), int(good.bad_steps_total)) == (4, 0, 2)
    assert training.apart(good.params, bad.params) > 0


def test_resumed_run_is_bitwise_the_uninterrupted() -> None:
    cfg = training.config()
    whole = training.trained(cfg, 4)[0]
    leaves, tree = jax.tree.flatten(training.trained(cfg, 2)[0])
    state = jax.tree.unflatten(tree, [np.array(leaf) for leaf in leaves])  # as from a file
    for i in (3, 4):
        batch = training.arrays(training.batch(i))
        state = training.programs()[1](state, batch, training.KEY)[0]
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_steps_differ_in_noise() -> None:
    cfg, step = training.config(), training.programs()[1]
    state, batch = training.initialised(cfg), training.arrays(training.batch(1))
    found = {
        float(step(s, batch, key)[1]["nll"])
        for s in (state, state.replace(step=state.step + 1))
        for key in (training.KEY, jax.random.key(8))
    }
    assert len(found) == 4


def test_metrics() -> None:
    cfg = training.config()
    state, shown = training.initialised(cfg), training.trained(cfg, 5)[1]
    batch = training.batch(1)
    noise = jax.random.uniform(jax.random.fold_in(training.KEY, 1), batch["gt"].shape) - 0.5
    model, variables = ZmarSNFlow(cfg.model), {"params": state.params}
    run = golden.jit(functools.partial(model.apply, method="nll"))
    nll = run(variables, batch["gt"], *ops.network_input(batch["low"]), noise).mean()
    np.testing.assert_allclose(shown[0]["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(shown[0]["loss"], nll, rtol=1e-5)
    np.testing.assert_allclose(shown[0]["bits_per_dim"], (nll - 5) / 3 + np.log2(255), rtol=1e-5)
    np.testing.assert_allclose(shown[0]["learning_rate"], 1e-3 * 1 / 2)  # the warm-up's plateau
    # log|det W| is 0 where W is orthogonal; last convolutions are 0, and sigmoid(2) + 1e-4 is left
    assert abs(shown[0]["log_det_mean"]) < 1e-5
    assert abs(shown[0]["log_det_min"]) < 1e-5
    np.testing.assert_allclose(shown[0]["scale_min"], 1 / (1 + np.exp(-2)) + 1e-4, rtol=1e-6)
    assert shown[4]["loss"] < shown[0]["loss"]
    assert "l1" not in shown[0]


def test_collapse_shows() -> None:
    cfg, step = training.config(), training.programs()[1]
    state = training.initialised(cfg)
    leaves = dict(flatten_dict(state.params))
    weight = ("flow", "level2", "conditional", "step", "invconv", "weight")
    logit = ("flow", "level3", "conditional", "step", "coupling", "fAffine", "bias")
    leaves[weight] = leaves[weight].at[0, 0].multiply(1e-3)
    leaves[logit] = leaves[logit].at[0, 1].set(-7.0)  # odd channels are the scales' logits
    collapsed = state.replace(params=unflatten_dict(leaves))
    metrics = step(collapsed, training.arrays(training.batch(1)), training.KEY)[1]
    np.testing.assert_allclose(metrics["log_det_min"], np.log(1e-3), rtol=1e-4)
    np.testing.assert_allclose(metrics["log_det_mean"], np.log(1e-3) / 6, rtol=1e-3)
    np.testing.assert_allclose(metrics["scale_min"], 1 / (1 + np.exp(5)) + 1e-4, rtol=1e-4)
    np.testing.assert_allclose(health(collapsed.params)["condition_max"], 1e3, rtol=1e-2)
    np.testing.assert_allclose(health(state.params)["condition_max"], 1, rtol=1e-3)


def test_moving_average() -> None:
    cfg = training.config()
    expected = training.initialised(cfg).params
    for step in range(1, 4):
        params = training.trained(cfg, step)[0].params
        decay = min(0.15, (1 + step) / (10 + step))  # 2/11 is above, the later ones below
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, params)
    ema = training.trained(cfg, 3)[0].ema
    assert training.apart(ema, expected) < 1e-6
    assert training.apart(ema, training.trained(cfg, 3)[0].params) > 1e-3


# Options, each of which is another program.


def first_moments(state: TrainState) -> Any:
    """Adam's mean gradient: a tenth of the gradient after one step."""
    return optax.tree.get(state.opt_state, "mu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        {"accumulate": 2},
        {"remat": "blocks"},
        {"remat": "reversible"},
        {"remat": "reversible", "accumulate": 2},
    ],
)
def test_option_changes_no_number(option: dict[str, Any]) -> None:
    expected, shown = training.trained(training.config(), 1)
    state, found = training.trained(training.config(**option), 1)
    assert training.apart(first_moments(state), first_moments(expected)) < 1e-4
    np.testing.assert_allclose(
        list(found[0].values()), list(shown[0].values()), rtol=1e-5, atol=1e-6
    )
    assert found[0].keys() == shown[0].keys()


@pytest.mark.slow
def test_bfloat16_policy() -> None:
    plain = training.config()
    model = dataclasses.replace(training.MODEL, policy="bfloat16")
    state = state_of(dataclasses.replace(plain, model=model), training.initialised(plain).params)
    found = []
    for i in range(1, 4):
        state, metrics = training.programs()[1](
            state, training.arrays(training.batch(i)), training.KEY
        )
        found.append(float(metrics["loss"]))
    expected = [metrics["loss"] for metrics in training.trained(plain, 3)[1]]
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert int(state.bad_steps_total) == 0


@pytest.mark.slow
def test_remat_lowers_the_memory_of_a_larger_model() -> None:
    def temporaries(remat: Remat) -> int:
        cfg = Config(model=TINY, train=TrainConfig(remat=remat))
        state = jax.eval_shape(functools.partial(create_state, cfg), training.KEY)
        image = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.uint8)
        lowered = compilation.jit(train_step).lower(
            state, {"low": image, "gt": image}, training.KEY
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    none, blocks, reversible = map(temporaries, ("none", "blocks", "reversible"))
    assert blocks < 0.8 * none
    assert reversible < 0.8 * none  # at K = 2 it is not below blocks: tests/test_reversible.py


def restored(cfg: Config, params: Any, low: np.ndarray) -> Any:
    b, h, w, _ = low.shape
    run = golden.jit(functools.partial(ZmarSNFlow(cfg.model).apply, method="inverse"))
    z = jnp.zeros((b, h // 8, w // 8, 192))
    return jnp.clip(run({"params": params}, z, *ops.network_input(low))[0], 0, 1)


@pytest.mark.slow
def test_l1_beside_the_nll() -> None:
    cfg = training.config(weight_l1=3.0)
    state, shown = training.trained(cfg, 1)
    batch = training.batch(1)
    expected = jnp.abs(batch["gt"] - restored(cfg, training.initialised(cfg).params, batch["low"]))
    np.testing.assert_allclose(shown[0]["l1"], expected.mean(), rtol=1e-4)
    plain, plain_shown = training.trained(training.config(), 1)
    np.testing.assert_allclose(shown[0]["nll"], plain_shown[0]["nll"], rtol=1e-5)
    np.testing.assert_allclose(shown[0]["loss"], shown[0]["nll"] + 3 * shown[0]["l1"], rtol=1e-5)
    assert np.isfinite(shown[0]["grad_norm"])
    assert training.apart(first_moments(state), first_moments(plain)) > 1e-3


@pytest.mark.slow
def test_l1_through_reversible_steps() -> None:
    expected, shown = training.trained(training.config(weight_l1=3.0), 1)
    state, found = training.trained(training.config(weight_l1=3.0, remat="reversible"), 1)
    assert training.apart(first_moments(state), first_moments(expected)) < 1e-4
    np.testing.assert_allclose(found[0]["loss"], shown[0]["loss"], rtol=1e-5)


@pytest.mark.slow
def test_l1_after_the_nll() -> None:
    cfg = training.config(weight_l1=2.0, flow_warmup_steps=2)
    state, shown = training.trained(cfg, 12)
    # step 0 only initialises; step 1 is the second
    np.testing.assert_allclose(shown[0]["loss"], shown[0]["nll"])
    np.testing.assert_allclose([m["loss"] / m["l1"] for m in shown[1:]], 2.0, rtol=1e-6)
    assert all(np.isfinite(m["grad_norm"]) and m["grad_norm"] > 0 for m in shown)
    batch = training.arrays(training.batch(1))
    before, after = (
        float(losses.l1(batch["gt"], restored(cfg, s.params, batch["low"])))
        for s in (training.trained(cfg, 1)[0], state)
    )
    assert after < before


@pytest.mark.slow
def test_a_part_of_the_loss_that_does_not_count_may_be_nan() -> None:
    cfg = training.config(weight_l1=2.0, flow_warmup_steps=1)
    state = training.trained(cfg, 1)[0]
    batch = training.arrays(training.batch(1))
    poisoned = batch | {"noise": jnp.full_like(batch["gt"], jnp.nan)}
    _, metrics = training.programs()[1](state, poisoned, jax.random.key(0))
    assert np.isnan(metrics["nll"])
    assert np.isfinite(metrics["grad_norm"])
    assert not metrics["skipped"]


def test_l1_leaves_out_pixels_that_are_nan() -> None:
    gt = jnp.array([0.5, 0.25, 0.0, 1.0])
    restored = jnp.array([0.75, jnp.nan, -3.0, 4.0])
    value, gradient = jax.value_and_grad(losses.l1, argnums=1)(gt, restored)
    np.testing.assert_allclose(value, 0.25 / 3)
    np.testing.assert_allclose(gradient, [1 / 3, 0, 0, 0], rtol=1e-6)
    assert losses.l1(gt, jnp.full(4, jnp.nan)) == 0


def test_bits_per_dim_of_a_uniform_density() -> None:
    # z = 0 and a log-determinant that makes the density of every image 1: 8-bit noise
    z = jnp.zeros((2, 4, 4, 12))
    logdet = -losses.standard_normal_logprob(z)
    nll = losses.nll_bits_per_pixel(z, logdet, 8 * 8, 32)
    np.testing.assert_allclose(losses.bits_per_dim(nll, 32), np.log2(255), rtol=1e-6)


# Initial weights.


def test_initial_state() -> None:
    state = training.created()
    leaves = flatten_dict(state.params)
    shapes = flatten_dict(param_shapes(training.MODEL))
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        path: leaf.shape for path, leaf in shapes.items()
    }
    for path, leaf in leaves.items():
        if path[-2:] == ("invconv", "weight"):
            eye = np.broadcast_to(np.eye(leaf.shape[-1]), leaf.shape)
            np.testing.assert_allclose(leaf @ leaf.mT, eye, atol=1e-5)
            assert not np.allclose(leaf, eye, atol=0.1)
    assert training.apart(state.ema, state.params) == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(first_moments(state)))
    assert state_of(training.config(ema=None), state.params).ema is None


@pytest.mark.slow
def test_initial_weights_are_distributed_as_the_modules_draw_them() -> None:
    image, mask = (jnp.zeros((1, 16, 16, c)) for c in (3, 1))
    inputs = (image, image, mask, image)
    drawn = golden.jit(ZmarSNFlow(TINY).init)(training.KEY, *inputs)["params"]
    expected = flatten_dict(drawn)
    found = flatten_dict(compilation.jit(init_params, static_argnums=0)(TINY, training.KEY))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        name = "/".join(path)
        if path[-2:] == ("invconv", "weight"):
            continue
        if not expected[path].std():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=name)
            continue
        noise = 4 / np.sqrt(2 * leaf.size)  # four standard errors, of a normal distribution
        np.testing.assert_allclose(leaf.std(), expected[path].std(), rtol=2 * noise, err_msg=name)
        np.testing.assert_allclose(
            np.abs(leaf).max(), np.abs(expected[path]).max(), rtol=0.5, err_msg=name
        )
        assert abs(leaf.mean()) < 4 * leaf.std() / np.sqrt(leaf.size), name
