"""Learning rates against the release's, and Adam against its definition in float64."""

import itertools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmar_jax.config import Config, TrainConfig, override
from zmar_jax.train.optimizer import learning_rate, optimizer, scale_by_adam


def rates(config: TrainConfig, steps: Any) -> np.ndarray:
    return np.asarray(learning_rate(config)(np.asarray(steps)))


def release(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Our steps, and the release's rates of their iterations: iteration 1 is step 0."""
    g = golden.load("lr_schedule")
    return g["iteration" + part] - 1, g["lr" + part]


@pytest.mark.parametrize("part", ["", "_tail"])
def test_the_releases_rates(part: str) -> None:
    steps, expected = release(part)
    with jax.enable_x64(True):
        np.testing.assert_allclose(rates(TrainConfig(), steps), expected, rtol=1e-14)
    found = rates(TrainConfig(), steps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1.5e-7)


def test_drops_begin_at_the_milestones() -> None:
    edges = np.array([20_000, 30_000, 36_000, 38_000])  # iterations, model.md section 7
    plateau = 0.999 * 2e-4
    for offset, first in ((-2, 0), (-1, 1)):
        expected = plateau * 0.5 ** (first + np.arange(4))
        np.testing.assert_allclose(rates(TrainConfig(), edges + offset), expected, rtol=3e-7)


def test_corrected_warmup_reaches_the_rate() -> None:
    config = TrainConfig(release_warmup=False)
    found = rates(config, [0, 498, 998, 999, 1000, 5000])
    np.testing.assert_allclose(found / 2e-4, [0.001, 0.499, 0.999, 1, 1, 1], rtol=3e-7)


@pytest.mark.parametrize("release_warmup", [True, False])
@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warmup(warmup: int, release_warmup: bool) -> None:
    config = TrainConfig(warmup_steps=warmup, release_warmup=release_warmup, schedule="constant")
    np.testing.assert_allclose(rates(config, [0, 1, 39_999]), 2e-4, rtol=1e-7)


def test_cosine() -> None:
    config = TrainConfig(steps=109, warmup_steps=10, release_warmup=False, schedule="cosine")
    found = rates(config, [9, 34, 59, 109, 200]) / 2e-4
    np.testing.assert_allclose(found, [1, 0.5 + 0.5**1.5, 0.5, 0, 0], atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_no_step_is_wasted(schedule: Any) -> None:
    """A rate of 0 would change nothing."""
    for steps, warmup in itertools.product((1, 2, 20), (0, 1, 5, 19, 20, 30)):
        config = TrainConfig(steps=steps, warmup_steps=warmup, schedule=schedule)
        found = np.broadcast_to(rates(config, np.arange(20)), 20)
        assert (found[:steps] > 0).all(), (steps, warmup)


@pytest.mark.parametrize("milestones", [(), (0.5,), (0.2, 0.4, 0.6, 0.8, 0.9)])
def test_any_number_of_milestones(milestones: tuple[float, ...]) -> None:
    listed = f"train.milestones={list(milestones)}"
    config = override(Config(), [listed, "train.steps=10", "train.warmup_steps=0"]).train
    assert config.milestones == milestones
    steps = np.arange(10)
    passed = (steps[:, None] + 1 >= 10 * np.array([*milestones])).sum(1)
    np.testing.assert_allclose(rates(config, steps) / 2e-4, 0.5**passed, rtol=3e-7)


def test_milestones_share_an_iteration() -> None:
    config = TrainConfig(steps=4, warmup_steps=0, milestones=(0.5, 0.5, 0.5, 1.0))
    np.testing.assert_allclose(rates(config, [0, 1, 3]) / 2e-4, [1, 1 / 8, 1 / 16], rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100_000), st.sampled_from([0.0, 0.9, 0.999, 0.999999]))
def test_bias_corrections_are_exact(count: int, beta: float) -> None:
    # moments whose correction is a division by 1 - beta^t, for one gradient of 0
    transform = scale_by_adam(beta, 0.0)
    start = optax.ScaleByAdamState(jnp.int32(count - 1), jnp.float32(1.0), jnp.float32(0.0))
    updates, _ = transform.update(jnp.float32(1e8), start)
    exact = (beta + (1 - beta) * 1e8) / -np.expm1(count * np.log(beta)) if beta else 1e8
    np.testing.assert_allclose(float(updates), exact / 1e8, rtol=5e-7)


def steps(config: TrainConfig, params: Any, gradients: list[Any]) -> Any:
    """`params` after updates of these gradients at the learning rate 1e-2."""
    transform = optimizer(config)
    state = transform.init(params)
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p - 1e-2 * u, params, updates)
    return params


def adam(value: float, gradients: list[float], decay: float, decoupled: bool) -> float:
    """The definition, in float64."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        g = g if decoupled else g + decay * value
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        value -= 1e-2 * (update + decay * value * decoupled)
    return value


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decays", [(1e-2, 0.0), (0.0, 0.5), (0.3, 0.1)])
def test_weight_decay(name: Any, decays: tuple[float, float]) -> None:
    config = TrainConfig(
        optimizer=name, weight_decay_encoder=decays[0], weight_decay_flow=decays[1]
    )
    numbers = [0.3, -0.2, 0.05, 0.4, -0.01]
    params = {"encoder": {"kernel": jnp.float32(2.0)}, "flow": {"logs": jnp.float32(-3.0)}}
    gradients = [jax.tree.map(lambda _, g=g: jnp.float32(g), params) for g in numbers]
    found = steps(config, params, gradients)
    expected = [
        adam(value, numbers, decay, name == "adamw")
        for value, decay in zip((2.0, -3.0), decays, strict=True)
    ]
    found = [float(found["encoder"]["kernel"]), float(found["flow"]["logs"])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("limit", "factor"), [(None, 1.0), (6.0, 1.0), (2.5, 0.5)])
def test_clipping_by_the_global_norm(limit: float | None, factor: float) -> None:
    config = TrainConfig(clip_norm=limit, weight_decay_encoder=0.0)
    params = {"encoder": jnp.zeros(1), "flow": jnp.zeros(1)}
    gradient = {"encoder": jnp.array([3.0]), "flow": jnp.array([4.0])}  # of norm 5
    state = optimizer(config).update(gradient, optimizer(config).init(params), params)[1]
    mu = optax.tree.get(state, "mu")
    np.testing.assert_allclose([mu["encoder"][0], mu["flow"][0]], [0.3 * factor, 0.4 * factor])
