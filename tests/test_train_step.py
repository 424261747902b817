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

from zmar_jax import ops, torch_port
from zmar_jax.config import PRESETS, Config, Remat, TrainConfig
from zmar_jax.models import ZmarSNFlow, losses, param_shapes
from zmar_jax.runtime import compilation
from zmar_jax.train import health, train_step
from zmar_jax.train.state import TrainState, create_state, init_params, state_of
from zmar_jax.train.step import _inputs as inputs

TINY = PRESETS["tiny"]


# The release's numbers.


def golden_batch(i: int) -> dict[str, np.ndarray]:
    g = golden.load("tiny_training")
    noise = np.random.RandomState(5000 + i).rand(*g["gt"].shape).astype(np.float32) - 0.5
    return {k: golden.nhwc(x) for k, x in (("low", g["low"]), ("gt", g["gt"]), ("noise", noise))}


@functools.cache
def recipe() -> Config:
    g = golden.load("tiny_training")
    train = TrainConfig(
        schedule="constant",
        warmup_steps=0,
        learning_rate=float(g["lr"]),
        weight_decay_encoder=float(g["weight_decay_encoder"]),
        ema=0.22,
    )
    return Config(model=TINY, train=train)


def step(state: TrainState, batch: dict[str, np.ndarray]) -> tuple[TrainState, dict[str, Any]]:
    return training.programs()[1](state, batch, training.KEY)


def untrained(rounding: int = 0) -> TrainState:
    """Before the first step. A `rounding` other than 0 changes the last bit of the weights."""
    leaves = flatten_dict(golden.params("tiny", 3))
    zeroed = {p: 0 * x if p[-2].startswith("actnorm") else x for p, x in leaves.items()}
    if rounding:
        rng = np.random.default_rng(rounding)
        signs = {p: rng.choice((-1, 1), x.shape) for p, x in zeroed.items()}
        zeroed = {p: x * np.float32(1 + 2.0**-23 * signs[p]) for p, x in zeroed.items()}
    return state_of(recipe(), unflatten_dict(zeroed))


def initialise(batch: dict[str, np.ndarray], rounding: int = 0) -> TrainState:
    return training.programs()[0](untrained(rounding), batch, training.KEY)


@functools.cache
def golden_run(rounding: int = 0) -> tuple[list[TrainState], list[dict[str, float]]]:
    """The state after the first step and after each of ten more, and the metrics of these."""
    states, metrics = [initialise(golden_batch(0), rounding)], []
    for i in range(10):
        state, shown = step(states[-1], golden_batch(i))
        states.append(state)
        metrics.append({key: float(value) for key, value in shown.items()})
    return states, metrics


@functools.cache
def agreeing_run() -> list[TrainState]:
    """The states of a run whose ten losses are the release's.

    Where a ReLU's input lies within rounding of zero, one bit becomes 1e-3 of the tenth loss, and
    which bit depends on the CPU and on XLA. Then another rounding of the weights must have all ten.
    """
    expected = golden.load("tiny_training")["losses"]
    errors = []
    for rounding in range(4):
        states, metrics = golden_run(rounding)
        found = np.array([shown["loss"] for shown in metrics])
        np.testing.assert_allclose(found[:6], expected[:6], rtol=1e-4)
        errors.append(np.max(np.abs(found / expected - 1)))
        if errors[-1] <= 1e-4:
            return states
    pytest.fail(f"no rounding agrees: {errors}")


def test_golden_losses() -> None:
    """All ten losses are the release's."""
    assert len(agreeing_run()) == 11


def test_golden_weights_at_first() -> None:
    check_golden_weights("init", 96, golden_run()[0][0])


def test_golden_weights_after_ten_steps() -> None:
    """Of the run whose losses agree: one that has passed a ReLU's corner has other weights."""
    check_golden_weights("final", 7, agreeing_run()[10])


def check_golden_weights(part: str, count: int, state: TrainState) -> None:
    g = golden.load("tiny_training")
    expected = {key: g[key] for key in g if key.startswith(f"{part}/")}
    assert len(expected) == count
    state_dict = torch_port.to_state_dict(state.params, TINY)
    for key, value in expected.items():
        found = state_dict[key.removeprefix(f"{part}/")]
        np.testing.assert_allclose(found, value, atol=1e-5, rtol=1e-5, err_msg=key)


# The first step.


def test_first_step_normalises_and_counts() -> None:
    state, batch = golden_run()[0][0], golden_batch(0)
    assert (int(state.step), int(state.bad_steps), int(state.bad_steps_total)) == (1, 0, 0)
    x = ops.squeeze2(losses.dequantize(ops.to_unit(batch["gt"]), batch["noise"], 32))
    actnorm = state.params["flow"]["level1"]["additional"]["step"]["actnorm"]
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    np.testing.assert_allclose(actnorm["bias"][0], -mean, rtol=1e-5)
    np.testing.assert_allclose(actnorm["logs"][0], -jnp.log(std + 1e-6), rtol=1e-5)


@pytest.mark.slow
def test_first_step_keeps_trained_actnorms() -> None:
    state = training.trained(training.config(), 2)[0]
    again = training.programs()[0](state, training.arrays(training.batch(9)), training.KEY)
    assert training.apart(again.params, state.params) == 0
    assert int(again.step) == 4


def test_first_step_waits_for_a_finite_batch() -> None:
    batch = golden_batch(0)
    found = initialise(batch | {"gt": spoiled(batch["gt"], np.nan)})
    assert (int(found.step), int(found.bad_steps), int(found.bad_steps_total)) == (0, 1, 1)
    unchanged(found, untrained())


# What one step does.


def spoiled(gt: np.ndarray, value: float) -> np.ndarray:
    gt = gt.copy()
    gt[1, 3, 2, 1] = value
    return gt


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
    state, batch = golden_run()[0][0], golden_batch(1)
    batch["gt"] = spoiled(batch["gt"], value)
    bad, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) == loss_is_finite
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    assert (int(bad.step), int(bad.bad_steps), int(bad.bad_steps_total)) == (2, 1, 1)
    unchanged(bad, state)

    bad = step(bad, batch)[0]
    assert (int(bad.step), int(bad.bad_steps), int(bad.bad_steps_total)) == (3, 2, 2)
    good, metrics = step(bad, golden_batch(3))
    assert metrics["skipped"] == 0
    assert (int(good.step), int(good.bad_steps), int(good.bad_steps_total)) == (4, 0, 2)
    assert training.apart(good.params, bad.params) > 0


def test_resumed_run_is_bitwise_the_uninterrupted() -> None:
    states = golden_run()[0]
    leaves, tree = jax.tree.flatten(states[2])
    state = jax.tree.unflatten(tree, [np.array(leaf) for leaf in leaves])  # as from a file
    for i in (2, 3):
        state = step(state, golden_batch(i))[0]
    jax.tree.map(np.testing.assert_array_equal, state, states[4])


def test_steps_and_runs_differ_in_noise() -> None:
    batch = {key: value for key, value in golden_batch(0).items() if key != "noise"}
    drawn = []
    for at in (1, 2):
        for key in (training.KEY, jax.random.key(8)):
            low, gt, noise = inputs(golden_run()[0][at], batch, key)
            expected = jax.random.uniform(jax.random.fold_in(key, 1 + at), gt.shape) - 0.5
            np.testing.assert_array_equal(noise, expected)
            assert low.shape == gt.shape == noise.shape
            drawn.append(float(noise[0, 0, 0, 0]))
    assert len(set(drawn)) == 4


def log_dets(params: Any) -> list[float]:
    leaves = flatten_dict(params).items()
    weights = [leaf for path, leaf in leaves if path[-2:] == ("invconv", "weight")]
    return [float(v) for w in weights for v in np.linalg.slogdet(np.float64(w))[1]]


def test_metrics() -> None:
    states, metrics = golden_run()
    shown = metrics[0]
    assert shown["nll"] == shown["loss"]
    np.testing.assert_allclose(
        shown["bits_per_dim"], (shown["nll"] - 5) / 3 + np.log2(255), rtol=1e-5
    )
    np.testing.assert_allclose(shown["learning_rate"], recipe().train.learning_rate)
    expected = log_dets(states[0].params)
    np.testing.assert_allclose(shown["log_det_mean"], np.mean(expected), atol=1e-5)
    np.testing.assert_allclose(shown["log_det_min"], np.min(expected), rtol=1e-5)
    assert 0 < shown["scale_min"] < 1 / (1 + np.exp(-2)) + 1e-4
    assert shown["grad_norm"] > 0
    assert "l1" not in shown


def test_collapse_shows() -> None:
    state = golden_run()[0][0]
    leaves = dict(flatten_dict(state.params))
    weight = ("flow", "level2", "conditional", "step", "invconv", "weight")
    affine = ("flow", "level3", "conditional", "step", "coupling", "fAffine")
    leaves[weight] = leaves[weight].at[0, 0].multiply(1e-3)
    leaves |= {path: 0 * leaf for path, leaf in leaves.items() if path[:-1] == affine}
    # odd channels are the scales' logits
    leaves[*affine, "bias"] = leaves[*affine, "bias"].at[0, 1].set(-7.0)
    collapsed = state.replace(params=unflatten_dict(leaves))
    metrics = step(collapsed, golden_batch(1))[1]
    np.testing.assert_allclose(
        metrics["log_det_min"], np.min(log_dets(collapsed.params)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["scale_min"], 1 / (1 + np.exp(5)) + 1e-4, rtol=1e-4)
    condition = health(collapsed.params)["condition_max"]
    np.testing.assert_allclose(condition, np.linalg.cond(leaves[weight][0]), rtol=1e-2)
    assert condition > 100 * health(state.params)["condition_max"]


def test_moving_average() -> None:
    states = golden_run()[0]
    expected = states[0].params
    for at in range(1, 4):
        decay = min(0.22, (1 + at) / (10 + at))  # 2/11 is below, the later ones above
        expected = jax.tree.map(
            lambda e, p, d=decay: d * e + (1 - d) * p, expected, states[at].params
        )
    assert training.apart(states[3].ema, expected) < 1e-6
    assert training.apart(states[3].ema, states[3].params) > 1e-6


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
    run = compilation.jit(functools.partial(ZmarSNFlow(cfg.model).apply, method="inverse"))
    z = jnp.zeros((b, *cfg.model.latent_shape(h, w)))
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
    drawn = compilation.jit(ZmarSNFlow(TINY).init)(training.KEY, *inputs)["params"]
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
