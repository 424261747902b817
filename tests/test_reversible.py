"""The flow's gradients from its outputs: autodiff's, in memory that does not grow with K."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from zmar_jax.config import PRESETS, ModelConfig, Remat
from zmar_jax.flow import HEALTH, FlowLevel
from zmar_jax.models.snflow import SNFlow
from zmar_jax.runtime import compilation

TINY = PRESETS["tiny"]
directions = pytest.mark.parametrize("direction", ["forward", "inverse"])


def inputs(preset: str, direction: str, size: int) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """Weights as after training, two images or latents, and conditions."""
    rng = np.random.default_rng(0)
    shape = {"forward": (2, size, size, 3), "inverse": (2, size // 8, size // 8, 192)}[direction]
    width = PRESETS[preset].condition_channels
    cond = {f"fea_up{i}": (2, size // s, size // s, width) for i, s in enumerate((8, 4, 2))}
    make = functools.partial(jnp.asarray, dtype=jnp.float32)
    normal = {name: make(rng.standard_normal(shape)) for name, shape in cond.items()}
    return golden.params(preset, 3)["flow"], make(0.3 * rng.standard_normal(shape)), normal


def gradients(flow: nn.Module, direction: str, at: Any) -> tuple[Any, Any]:
    """Value and HEALTH, and the gradients by weights, input and conditions, of some loss."""

    def loss(params: Any, x: jax.Array, cond: Any) -> tuple[jax.Array, Any]:
        (y, logdet), kept = flow.apply(
            {"params": params}, x, cond, method=direction, mutable=[HEALTH]
        )
        # each example weighs differently, so that no [B] is mistaken for its sum
        weights = jnp.array([1.0, 2.0])
        return (weights * (jnp.square(y).sum((1, 2, 3)) - logdet)).sum(), kept

    return compilation.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*at)


def apart(found: Any, expected: Any) -> dict[str, float]:
    """By leaf: the norm of the difference, relative to the leaf's."""
    pairs = jax.tree_util.tree_map(
        lambda f, e: np.linalg.norm(np.asarray(f, np.float64) - e) / np.linalg.norm(e),
        found,
        jax.tree.map(functools.partial(np.asarray, dtype=np.float64), expected),
    )
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(pairs)}


def same_gradients(
    make: Callable[[Remat], nn.Module], at: Any, direction: str, tolerance: float
) -> None:
    (value, kept), found = gradients(make("reversible"), direction, at)
    (expected_value, expected_kept), expected = gradients(make("none"), direction, at)
    np.testing.assert_allclose(value, expected_value, rtol=tolerance)
    errors = apart(found, expected)
    assert len(errors) == len(jax.tree.leaves(at))
    assert max(errors.values()) <= tolerance, max(errors.items(), key=lambda item: item[1])
    records, expected_records = map(flatten_dict, (kept, expected_kept))
    assert records.keys() == expected_records.keys()
    for path, record in records.items():
        np.testing.assert_allclose(record, expected_records[path], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", ["forward", pytest.param("inverse", marks=pytest.mark.slow)])
def test_gradients_of_a_level_are_those_of_autodiff(direction: str) -> None:
    params, _, cond = inputs("tiny", direction, 16)
    x = golden.normal(0, 2, *{"forward": (16, 16, 3), "inverse": (8, 8, 12)}[direction])
    at = params["level1"], jnp.asarray(x), cond["fea_up2"]
    same_gradients(functools.partial(FlowLevel, TINY), at, direction, 1e-4)


@pytest.mark.slow
@directions
def test_gradients_are_those_of_autodiff(direction: str) -> None:
    same_gradients(functools.partial(SNFlow, TINY), inputs("tiny", direction, 32), direction, 1e-4)


@pytest.mark.slow
@directions
def test_gradients_in_half_precision(direction: str) -> None:
    half = dataclasses.replace(TINY, policy="bfloat16")
    same_gradients(functools.partial(SNFlow, half), inputs("tiny", direction, 32), direction, 2e-2)


@pytest.mark.slow
@directions
def test_rounding_does_not_build_up_in_the_published_sizes(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ReLU whose input is within rounding of 0 may open in one pass and not in the other, which
    # moves a leaf's gradient by 1e-3, autodiff's own against float64 too: so without that corner.
    monkeypatch.setattr(nn, "relu", nn.softplus)
    preset = "zmar_snflow"
    flow = functools.partial(SNFlow, PRESETS[preset])
    same_gradients(flow, inputs(preset, direction, 32), direction, 1e-4)


@pytest.mark.parametrize(
    ("direction", "others"),
    [
        ("forward", ()),
        *[
            pytest.param(d, ("none", "blocks"), marks=pytest.mark.slow)
            for d in ("forward", "inverse")
        ],
    ],
)
def test_memory_does_not_grow_with_the_steps(direction: str, others: tuple[Remat, ...]) -> None:
    """As it does with the `others`."""

    def temporaries(remat: Remat, steps: int) -> int:
        level = FlowLevel(
            ModelConfig(dim=2, heads=(1, 1, 1, 1), flow_steps=steps, flow_hidden=8), remat
        )
        image, latent = (
            jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 64, 3), (1, 32, 32, 12))
        )
        cond = jax.ShapeDtypeStruct((1, 32, 32, 12), jnp.float32)
        variables = jax.eval_shape(
            functools.partial(level.init, method="forward"), jax.random.key(0), image, cond
        )

        def loss(variables: Any, x: jax.Array, cond: jax.Array) -> jax.Array:
            y, logdet = level.apply(variables, x, cond, method=direction)
            return jnp.square(y).sum() - logdet.sum()

        at = variables, {"forward": image, "inverse": latent}[direction], cond
        compiled = compilation.jit(jax.grad(loss, (0, 1, 2))).lower(*at).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("reversible", 16) < 1.05 * temporaries("reversible", 4)
    for remat in others:
        assert temporaries(remat, 16) > 1.5 * temporaries(remat, 4), remat
