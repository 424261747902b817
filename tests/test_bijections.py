"""Every bijection keeps the same promises.

One registry: whatever is in `BIJECTIONS` is inverted, differentiated and looked at one example at
a time, with perturbed parameters, since at zero init a wrong log-determinant passes.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.flow import (
    ActNorm,
    Coupling,
    Factored,
    FlowLevel,
    FlowStep,
    FlowSteps,
    InvConv,
    Projection,
    Squeeze,
    invert_weights,
)
from zmar_jax.flow.condition import (
    ConditionProjection,
    project_all,
    project_in_turn,
    project_together,
)
from zmar_jax.models.snflow import SNFlow
from zmar_jax.runtime import compilation

SMALL = ModelConfig(dim=2, heads=(1, 1, 1, 1), flow_steps=2, flow_hidden=4)
BATCH = -1
"""Marks the axis of the examples in a condition's shape."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A bijection from `x` [H, W, C] to `y`, each one example, given conditions of shape `cond`."""

    module: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]
    cond: Any = None


def same(module: nn.Module, shape: tuple[int, ...], cond: Any = None) -> Case:
    return Case(module, shape, shape, cond)


BIJECTIONS = {
    "actnorm": same(ActNorm(), (3, 4, 5)),
    "invconv": same(InvConv(), (2, 3, 6)),
    "squeeze": Case(Squeeze(), (4, 6, 3), (2, 3, 12)),
    "coupling": same(Coupling(SMALL), (3, 4, 6), (BATCH, 3, 4, 8)),
    "step": same(FlowStep(SMALL, conditional=False), (2, 3, 6)),
    "conditional_step": same(FlowStep(SMALL, conditional=True), (3, 2, 6), (BATCH, 3, 2, 8)),
    "steps": same(FlowSteps(SMALL, 3, conditional=False), (2, 3, 6)),
    "conditional_steps": same(
        FlowSteps(SMALL, 3, conditional=True),
        (3, 2, 6),
        Projection((BATCH, 3, 2, 12), (3, 3, 12, 3, 8)),
    ),
    "level": Case(FlowLevel(SMALL), (4, 6, 3), (2, 3, 12), (BATCH, 2, 3, 12)),
    "reversible_level": Case(
        FlowLevel(SMALL, "reversible"), (4, 6, 3), (2, 3, 12), (BATCH, 2, 3, 12)
    ),
    "snflow": Case(
        SNFlow(SMALL),
        (8, 8, 3),
        (1, 1, 192),
        {"fea_up0": (BATCH, 1, 1, 12), "fea_up1": (BATCH, 2, 2, 12), "fea_up2": (BATCH, 4, 4, 12)},
    ),
}
WITH_INVCONV = [name for name in BIJECTIONS if name not in ("actnorm", "squeeze", "coupling")]

TOLERANCE: dict[Any, float] = {np.float32: 1e-4, np.float64: 1e-10}


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Iterator[Any]:
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def in_both(names: Iterable[str]) -> Any:
    """In float64, whose tolerance of 1e-10 leaves a wrong formula no place to hide; in float32,
    quickly, the flow, which has all the others."""
    cases = [
        pytest.param(
            name,
            dtype,
            id=f"{dtype.__name__}-{name}",
            marks=[pytest.mark.slow] if dtype is np.float32 and name != "snflow" else [],
        )
        for name in names
        for dtype in TOLERANCE
    ]
    return pytest.mark.parametrize(("name", "dtype"), cases, indirect=["dtype"])


def conditions(name: str, batch: int, make: Any) -> Any:
    def leaf(shape: tuple[int, ...]) -> Any:
        return make(tuple(batch if n == BATCH else n for n in shape))

    return jax.tree.map(leaf, BIJECTIONS[name].cond, is_leaf=is_shape)


def is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple)


def of_examples(change: Any, name: str, *conds: Any) -> Any:
    """change(axis, *leaves) of the conditions' leaves that have an axis of examples."""

    def leaf(shape: tuple[int, ...], first: Any, *others: Any) -> Any:
        return change(shape.index(BATCH), first, *others) if BATCH in shape else first

    return jax.tree.map(leaf, BIJECTIONS[name].cond, *conds, is_leaf=is_shape)


@functools.cache
def parameters(name: str) -> Any:
    """{"params": ...} in float64, far from the initial values."""
    case = BIJECTIONS[name]
    cond = conditions(name, 1, lambda shape: jnp.zeros(shape))
    init = functools.partial(case.module.init, method="forward")
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *case.x)), cond)
    leaves = {path: perturbed(path, leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    return unflatten_dict(leaves)


def perturbed(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
    noise = rng.standard_normal(shape)
    if path[-1] == "weight":  # invconv: a rotation of a diagonal, not a rotation itself
        return np.linalg.qr(noise)[0] * np.exp(0.1 * rng.standard_normal(shape[-1:]))
    if path[-1] in ("bias", "logs"):
        # what couplings shrink, the actnorms before them enlarge: rounding is not amplified
        return 0.1 * noise + (0.1 if path[-2:] == ("actnorm", "logs") else 0.0)
    if path[-1] == "conv1":
        return noise / math.sqrt(shape[-2])
    gain = 0.3 if path[-2].startswith("f") else 1.0  # the last convolution of a net
    return gain * noise / math.sqrt(9 * shape[2 if "condition" in path else -2])


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def inputs(name: str, side: str, dtype: Any, seed: int = 0) -> tuple[Any, np.ndarray, Any]:
    """Variables, two examples at that side (`x` or `y`) of the bijection, and their conditions."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    example = rng.standard_normal((2, *getattr(BIJECTIONS[name], side)))
    cond = conditions(name, 2, rng.standard_normal)
    return cast(parameters(name), dtype), example.astype(dtype), cast(cond, dtype)


@functools.cache
def method(name: str, direction: str) -> Any:
    """(variables, array, cond) -> (array, logdet), compiled."""
    return compilation.jit(functools.partial(BIJECTIONS[name].module.apply, method=direction))


each = in_both(BIJECTIONS)
both = pytest.mark.parametrize(("direction", "side"), [("forward", "x"), ("inverse", "y")])


@each
@both
def test_round_trip(name: str, direction: str, side: str, dtype: Any) -> None:
    variables, here, cond = inputs(name, side, dtype)
    back = {"forward": "inverse", "inverse": "forward"}[direction]
    there, out = method(name, direction)(variables, here, cond)
    again, home = method(name, back)(variables, there, cond)
    assert there.shape[1:] == getattr(BIJECTIONS[name], {"x": "y", "y": "x"}[side])
    np.testing.assert_allclose(again, here, rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(home, -out, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@each
@both
def test_dtypes(name: str, direction: str, side: str, dtype: Any) -> None:
    variables, here, cond = inputs(name, side, dtype)
    there, logdet = method(name, direction)(variables, here, cond)
    assert (there.dtype, logdet.dtype, logdet.shape) == (dtype, dtype, (2,))


@each
def test_logdet_is_that_of_the_jacobian(name: str, dtype: Any) -> None:
    variables, x, cond = inputs(name, "x", dtype)
    apply = BIJECTIONS[name].module.apply

    def flat(x: jax.Array, cond: Any, variables: Any) -> tuple[jax.Array, jax.Array]:
        y, logdet = apply(variables, x.reshape(1, *BIJECTIONS[name].x), cond, method="forward")
        return y.reshape(-1), logdet

    jacobian = compilation.jit(jax.jacrev(flat, has_aux=True))
    for i in range(2):
        found, logdet = jacobian(x[i].reshape(-1), example(name, cond, i), variables)
        expected = np.linalg.slogdet(np.asarray(found, np.float64))[1]
        assert name == "squeeze" or abs(expected) > 0.1
        np.testing.assert_allclose(
            logdet[0], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def example(name: str, cond: Any, i: int) -> Any:
    """The condition of one example, as a batch of one."""
    return of_examples(lambda axis, a: np.take(a, [i], axis), name, cond)


@each
@both
def test_examples_do_not_see_each_other(name: str, direction: str, side: str, dtype: Any) -> None:
    variables, here, cond = inputs(name, side, dtype)
    _, other, other_cond = inputs(name, side, dtype, seed=1)
    other[0] = here[0]
    other_cond = first_example_of(name, cond, other_cond)
    (y, logdet), (y2, logdet2) = (
        method(name, direction)(variables, *arrays)
        for arrays in ((here, cond), (other, other_cond))
    )
    np.testing.assert_array_equal(y2[0], y[0])
    np.testing.assert_array_equal(logdet2[0], logdet[0])
    assert np.all(np.asarray(y2[1]) != y[1])


def first_example_of(name: str, cond: Any, others: Any) -> Any:
    """`others` with its first example replaced by that of `cond`."""

    def put(axis: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([np.take(a, [0], axis), np.take(b, [1], axis)], axis)

    return of_examples(put, name, cond, others)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if name != "snflow"])  # slow
@both
def test_gradients_are_those_of_finite_differences(name: str, direction: str, side: str) -> None:
    """By parameters, input and condition, in float64; fails where anything is rounded to less."""
    with jax.enable_x64(True):
        at = inputs(name, side, np.float64)
        weights = jax.tree.map(lambda a: golden.normal(2, *a.shape), method(name, direction)(*at))

        def total(outputs: Any) -> Any:
            return sum((a * b).sum() for a, b in zip(outputs, weights, strict=True))

        apply = functools.partial(BIJECTIONS[name].module.apply, method=direction)
        gradients = compilation.jit(jax.grad(lambda at: total(apply(*at))))(at)
        for i in (i for i in range(3) if jax.tree.leaves(at[i])):
            leaves, tree = jax.tree.flatten(at[i])
            step = [golden.normal(3 + j, *a.shape).astype(np.float64) for j, a in enumerate(leaves)]
            length = math.sqrt(sum(np.vdot(d, d) for d in step))
            step = [d / length for d in step]
            slopes = jax.tree.map(np.vdot, gradients[i], tree.unflatten(step))
            ends = []
            for eps in (1e-5, -1e-5):
                moved = tree.unflatten([a + eps * d for a, d in zip(leaves, step, strict=True)])
                ends.append(total(method(name, direction)(*at[:i], moved, *at[i + 1 :])))
            slope = sum(jax.tree.leaves(slopes))
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@in_both(WITH_INVCONV)
def test_precomputed_inverses_change_nothing(name: str, dtype: Any) -> None:
    variables, y, cond = inputs(name, "y", dtype)
    inverse = invert_weights(variables["params"])
    if name == "invconv":  # `invert_weights` knows an invconv by its name
        inverse = invert_weights({"invconv": variables["params"]})["invconv"]
    (x, logdet), (x2, logdet2) = (
        method(name, "inverse")(v, y, cond) for v in (variables, variables | {"inverse": inverse})
    )
    assert (x2.dtype, logdet2.dtype) == (dtype, dtype)
    np.testing.assert_allclose(x2, x, rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(logdet2, logdet, rtol=TOLERANCE[dtype])


HALF = dataclasses.replace(SMALL, policy="bfloat16")


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_half_precision_stays_inside_the_nets(direction: str) -> None:
    variables, x, cond = inputs("coupling", "x", np.float32)
    y, logdet = Coupling(HALF).apply(variables, x, cond, method=direction)
    exact, _ = method("coupling", direction)(variables, x, cond)
    assert (y.dtype, logdet.dtype) == (np.float32, np.float32)
    assert 1e-5 < np.abs(y - exact).max() < 0.1


def test_half_precision_couplings_are_exactly_invertible() -> None:
    variables, x, cond = inputs("coupling", "x", np.float32)
    y, out = Coupling(HALF).apply(variables, x, cond, method="forward")
    again, home = Coupling(HALF).apply(variables, y, cond, method="inverse")
    np.testing.assert_allclose(again, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(home, -out, rtol=1e-6)


# What is refused.


def test_odd_sizes_cannot_be_squeezed() -> None:
    with pytest.raises(ValueError, match=r"height and width must be even, got 3x4"):
        ops.squeeze2(jnp.zeros((1, 3, 4, 2)))
    variables, _, cond = inputs("snflow", "x", np.float32)
    with pytest.raises(ValueError, match=r"height and width must be even, got 9x8"):
        SNFlow(SMALL).apply(variables, np.zeros((2, 9, 8, 3)), cond, method="forward")


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_coupling_names_the_condition_that_it_wants(direction: str) -> None:
    variables, x, _ = inputs("coupling", "x", np.float32)
    with pytest.raises(ValueError, match=r"condition of 8 channels, got \(2, 3, 4, 12\)"):
        Coupling(SMALL).apply(variables, x, np.zeros((2, 3, 4, 12), np.float32), method=direction)


# The condition of all steps.


def test_the_projection_takes_the_matrix_of_a_factored_condition() -> None:
    projection, rng = ConditionProjection(2, 8), np.random.default_rng(0)

    def loss(variables: Any, features: Any, matrix: Any, expand: bool) -> Any:
        cond: Any = Factored(features, matrix)
        if expand:
            cond = jnp.concatenate([features[..., :4] @ matrix, features[..., 4:]], -1)
        return jnp.sin(project_all(projection.apply(variables, cond), "float32")).sum()

    with jax.enable_x64(True):
        variables = {"params": {"kernel": rng.standard_normal((3, 3, 12, 2, 8))}}
        args = variables, rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((4, 8))
        found = [jax.value_and_grad(loss, (0, 1, 2))(*args, expand) for expand in (False, True)]
        for factored, expanded in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(factored, expanded, rtol=1e-9, atol=1e-9)


def test_projections_together_and_in_turn() -> None:
    features, kernel, dy = (
        golden.normal(0, 2, 5, 6, 7),
        golden.normal(1, 3, 3, 7, 3, 4),
        golden.normal(2, 3, 2, 5, 6, 4),
    )
    (y, pull), (expected, other) = (
        jax.vjp(f, features, kernel) for f in (project_together, project_in_turn)
    )
    for a, b in zip((y, *pull(dy)), (expected, *other(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
