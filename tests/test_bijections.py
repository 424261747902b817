"""Every bijection keeps the same promises; and the array functions that they are made of.

One registry: whatever is in `BIJECTIONS` is inverted, differentiated and looked at one example at
a time, with perturbed parameters, since at zero init a wrong log-determinant passes.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.cost import multiply_adds
from zmar_jax.flow import (
    ActNorm,
    Composed,
    Coupling,
    FlowLevel,
    FlowStep,
    FlowSteps,
    InvConv,
    Squeeze,
    invert_weights,
)
from zmar_jax.flow.coupling import ConditionProjection, project_in_turn, project_together
from zmar_jax.models import ZmarSNFlow, param_shapes
from zmar_jax.models.encoder import Encoder
from zmar_jax.models.snflow import SNFlow

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
        FlowSteps(SMALL, 3, conditional=True), (3, 2, 6), (3, BATCH, 3, 2, 8)
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


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Both precisions: in float64 a tolerance of 1e-10 leaves a wrong formula no place to hide."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def conditions(name: str, batch: int, make: Any) -> Any:
    def leaf(shape: tuple[int, ...]) -> Any:
        return make(tuple(batch if n == BATCH else n for n in shape))

    return jax.tree.map(leaf, BIJECTIONS[name].cond, is_leaf=lambda s: isinstance(s, tuple))


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
    return golden.jit(functools.partial(BIJECTIONS[name].module.apply, method=direction))


each = pytest.mark.parametrize("name", BIJECTIONS)
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

    jacobian = golden.jit(jax.jacrev(flat, has_aux=True))
    for i in range(2):
        found, logdet = jacobian(x[i].reshape(-1), example(name, cond, i), variables)
        expected = np.linalg.slogdet(np.asarray(found, np.float64))[1]
        assert name == "squeeze" or abs(expected) > 0.1
        np.testing.assert_allclose(
            logdet[0], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def example(name: str, cond: Any, i: int) -> Any:
    """The condition of one example, as a batch of one."""

    def take(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.take(a, [i], axis=shape.index(BATCH))

    return jax.tree.map(take, cond, BIJECTIONS[name].cond)


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

    def put(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        axis = shape.index(BATCH)
        return np.concatenate([np.take(a, [0], axis), np.take(b, [1], axis)], axis)

    return jax.tree.map(put, cond, others, BIJECTIONS[name].cond)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if name != "snflow"])  # slow
@both
def test_gradients_are_those_of_finite_differences(name: str, direction: str, side: str) -> None:
    """By parameters, input and condition, in float64; fails where anything is rounded to less."""
    with jax.enable_x64(True):
        at = inputs(name, side, np.float64)
        weights = jax.tree.map(lambda a: normal(2, *a.shape), method(name, direction)(*at))

        def total(outputs: Any) -> Any:
            return sum((a * b).sum() for a, b in zip(outputs, weights, strict=True))

        apply = functools.partial(BIJECTIONS[name].module.apply, method=direction)
        gradients = golden.jit(jax.grad(lambda at: total(apply(*at))))(at)
        for i in (i for i in range(3) if jax.tree.leaves(at[i])):
            leaves, tree = jax.tree.flatten(at[i])
            step = [normal(3 + j, *a.shape).astype(np.float64) for j, a in enumerate(leaves)]
            length = math.sqrt(sum(np.vdot(d, d) for d in step))
            step = [d / length for d in step]
            slopes = jax.tree.map(np.vdot, gradients[i], tree.unflatten(step))
            ends = []
            for eps in (1e-5, -1e-5):
                moved = tree.unflatten([a + eps * d for a, d in zip(leaves, step, strict=True)])
                ends.append(total(method(name, direction)(*at[:i], moved, *at[i + 1 :])))
            slope = sum(jax.tree.leaves(slopes))
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", WITH_INVCONV)
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


def test_channels_that_are_no_multiple_of_four_cannot_be_unsqueezed() -> None:
    with pytest.raises(ValueError, match=r"channels must be a multiple of 4, got 6"):
        ops.unsqueeze2(jnp.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_coupling_names_the_condition_that_it_wants(direction: str) -> None:
    variables, x, _ = inputs("coupling", "x", np.float32)
    with pytest.raises(ValueError, match=r"condition of 8 channels, got \(2, 3, 4, 12\)"):
        Coupling(SMALL).apply(variables, x, np.zeros((2, 3, 4, 12), np.float32), method=direction)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 1), (1, 4, 4, 4), (1, 3, 4, 4)])
def test_network_input_wants_an_rgb_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB batch \[B, H, W, 3\], got \("):
        ops.network_input(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("size", [(16, 20), (12, 16), (8, 16), (16, 8)])
def test_the_encoder_says_how_to_pad(size: tuple[int, int]) -> None:
    lr, mask = (jax.ShapeDtypeStruct((1, *size, c), jnp.float32) for c in (3, 1))
    text = f"multiples of 8 and at least 16, got {size[0]}x{size[1]}; pad with ops.pad_to_multiple"
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(Encoder(SMALL).init, jax.random.key(0), lr, mask)


@pytest.mark.parametrize(
    ("lr", "mask"),
    [
        ((1, 16, 16, 1), (1, 16, 16, 1)),
        ((1, 16, 16, 3), (1, 16, 16, 3)),
        ((2, 16, 16, 3), (1, 16, 16, 1)),
    ],
)
def test_the_encoder_wants_an_image_and_its_mask(lr: Any, mask: Any) -> None:
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lr, mask))
    with pytest.raises(ValueError, match=r"expected lr \[B, H, W, 3\], mask \[B, H, W, 1\]; got"):
        jax.eval_shape(Encoder(SMALL).init, jax.random.key(0), *arrays)


def test_the_projection_takes_the_matrix_of_a_composed_condition() -> None:
    projection, rng = ConditionProjection(SMALL), np.random.default_rng(0)

    def loss(variables: Any, features: Any, matrix: Any, expand: bool) -> Any:
        cond: Any = Composed(features, matrix)
        if expand:
            cond = jnp.concatenate([features[..., :4] @ matrix, features[..., 4:]], -1)
        return jnp.sin(projection.apply(variables, cond)).sum()

    with jax.enable_x64(True):
        variables = {"params": {"kernel": rng.standard_normal((3, 3, 12, 2, 8))}}
        args = variables, rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((4, 8))
        found = [jax.value_and_grad(loss, (0, 1, 2))(*args, expand) for expand in (False, True)]
        for composed, expanded in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(composed, expanded, rtol=1e-9, atol=1e-9)


def test_features_are_smaller_than_conditions_and_less_work() -> None:
    model, variables = ZmarSNFlow(SMALL), {"params": param_shapes(SMALL)}
    lr, mask, z = (
        jax.ShapeDtypeStruct((1, n, n, c), jnp.float32) for n, c in ((16, 3), (16, 1), (2, 192))
    )
    work = []
    for method, name, width in (("encode", "fea_up2", 12), ("features", "d2_f", 8)):
        made = jax.eval_shape(functools.partial(model.apply, method=method), variables, lr, mask)
        assert made[name].shape == (1, 8, 8, width)
        work.append(
            multiply_adds(functools.partial(model.apply, method="decode"), variables, z, made)
        )
    assert work[1] < work[0]


# Array functions.

few = settings(max_examples=10, deadline=None)
many = settings(max_examples=100, deadline=None)
SIZE = st.integers(1, 9)
SEED = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def test_projections_together_and_in_turn() -> None:
    features, kernel, dy = normal(0, 2, 5, 6, 7), normal(1, 3, 3, 7, 3, 4), normal(2, 3, 2, 5, 6, 4)
    (y, pull), (expected, other) = (
        jax.vjp(f, features, kernel) for f in (project_together, project_in_turn)
    )
    for a, b in zip((y, *pull(dy)), (expected, *other(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@few
@given(b=SIZE, h=st.integers(1, 25), w=SIZE, c=SIZE, seed=SEED)
def test_square_sum_and_its_gradient(b: int, h: int, w: int, c: int, seed: int) -> None:
    """Of heights that eight rows at a time divide, and of others; on CPU, and on all else."""
    x, dy = normal(seed, b, h, w, c), normal(seed + 1, b, c)
    pull = jax.vjp(ops.square_sum, x)[1]
    for form in (ops.square_sum, ops._square_sum):
        np.testing.assert_allclose(form(x), np.square(x).sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pull(dy)[0], 2 * x * dy[:, None, None], rtol=1e-6)
    assert ops.square_sum(x.astype(jnp.bfloat16)).dtype == jnp.float32


@many
@given(b=SIZE, h=SIZE, w=SIZE, c=SIZE, seed=SEED)
def test_squeeze2_orders_channels_like_pixel_unshuffle(
    b: int, h: int, w: int, c: int, seed: int
) -> None:
    x = normal(seed, b, 2 * h, 2 * w, c)
    y = ops.squeeze2(x)
    assert y.shape == (b, h, w, 4 * c)
    for channel in range(4 * c):
        dy, dx = divmod(channel % 4, 2)
        np.testing.assert_array_equal(y[..., channel], x[:, dy::2, dx::2, channel // 4])
    np.testing.assert_array_equal(ops.unsqueeze2(y), x)


@many
@given(b=SIZE, h=SIZE, w=SIZE, c=SIZE, seed=SEED)
def test_squeeze2_undoes_unsqueeze2(b: int, h: int, w: int, c: int, seed: int) -> None:
    y = normal(seed, b, h, w, 4 * c)
    np.testing.assert_array_equal(ops.squeeze2(ops.unsqueeze2(y)), y)


@few
@given(h=st.integers(1, 20), w=st.integers(1, 20), multiple=st.sampled_from([2, 4, 8]))
def test_padding_reflects_at_the_bottom_and_right(h: int, w: int, multiple: int) -> None:
    x = normal(0, 1, h, w, 2)
    extra = [(0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)]
    y = ops.pad_to_multiple(x, multiple)
    assert all(n % multiple == 0 for n in y.shape[1:3])
    np.testing.assert_array_equal(y, np.pad(x, extra, mode="reflect"))


@few
@given(grid=st.integers(1, 4), h=st.integers(1, 3), w=st.integers(1, 3), c=SIZE, seed=SEED)
def test_mix_cells_is_a_sum_over_cells(grid: int, h: int, w: int, c: int, seed: int) -> None:
    x, a = normal(seed, 2, grid * h, grid * w, c), normal(seed, 2, grid, grid, grid, grid)
    expected = np.zeros_like(x)
    for i, j, k, n in np.ndindex(grid, grid, grid, grid):
        cell = x[:, k * h : (k + 1) * h, n * w : (n + 1) * w]
        weight = a[:, i, j, k, n, None, None, None]
        expected[:, i * h : (i + 1) * h, j * w : (j + 1) * w] += weight * cell
    found = golden.jit(ops.mix_cells)(x, a)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@few
@given(h=st.integers(1, 3), w=st.integers(1, 3), seed=SEED)
def test_cell_attention_is_the_softmax_of_cosines(h: int, w: int, seed: int) -> None:
    mask = (normal(seed, 2, 4 * h, 4 * w, 1) > 0.5).astype(np.float32)
    found = golden.jit(functools.partial(ops.cell_attention, grid=4))(mask)
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
    x = normal(seed, 2, factor * h, factor * w, 3)

    def pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        resized = jax.image.resize(x, (2, h, w, 3), "bilinear", antialias=False)
        return ops.shrink(x, factor), resized

    found, expected = golden.jit(pair)(x)
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
