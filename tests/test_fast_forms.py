"""Every fast form computes what the plain reference does, at random sizes and configurations.

Stages of the encoder and levels of the flow are held to it alone, since they compile in seconds;
the goldens hold how the model puts them together, and slow tests hold whole models here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from zmar_jax import ops, torch_port
from zmar_jax.benchmark.weights import random_state_dict
from zmar_jax.config import ModelConfig
from zmar_jax.flow import FlowLevel, invert_weights
from zmar_jax.flow.actnorm import ACTNORM_INIT
from zmar_jax.kernels import tpu
from zmar_jax.models import ZmarSNFlow, reference, reference_init
from zmar_jax.models.attention import Stage
from zmar_jax.models.notation import reflect_pad, unstack
from zmar_jax.restore.programs import make_split_programs
from zmar_jax.runtime import compilation
from zmar_jax.tiling.rows import Rows
from zmar_jax.torch_port import port

VALUES, GRADIENTS, HALF = 1e-5, 1e-4, 0.05
"""How far apart (`close`) values, gradients, and values of the bfloat16 policy may be. Measured in
float32: 5e-7 of what a stage adds, 2e-7 of a level's result."""


def few(count: int) -> settings:
    """Always the same examples, so that what fails fails everywhere; none is made simpler."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """Computes in the forms of another platform, on this CPU."""

    def dependent(*arrays: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
        return forms.get(name, default)(*arrays)

    jax.clear_caches()  # which may hold what was traced for another
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", dependent)
        yield


def apart(found: Any, expected: Any) -> dict[str, float]:
    """Leaf by leaf: the norm of the difference, relative to the leaf's norm."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    errors = {}
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert a.shape == b.shape
        a, b = (np.asarray(leaf, np.float64) for leaf in (a, b))
        norm = np.linalg.norm(b)
        # what the reference has as zero up to rounding has no relative error
        errors[jax.tree_util.keystr(path)] = np.linalg.norm(a - b) / (norm + 1e-5 * b.size**0.5)
    return errors


def close(found: Any, expected: Any, tolerance: float, rounded: Any = None) -> None:
    """`apart` by the tolerance at most; or by 16 times as much as what one rounding changes, which
    `rounded` shows: LayerNorm of two channels that are nearly equal makes much of it."""
    errors = apart(found, expected)
    moved = dict.fromkeys(errors, 0.0) if rounded is None else apart(rounded, expected)
    bad = {
        name: (error, moved[name])
        for name, error in errors.items()
        if not error <= max(tolerance, min(16 * moved[name], 0.01))
    }
    assert not bad, f"beyond {tolerance}: {bad}"


def weights(config: ModelConfig, seed: int) -> Any:
    """Random ones; without tracing the whole model for its shapes, which takes seconds."""
    shapes = {tuple(p.path.split("/")): p.shape for p in reference_init.parameters(config)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(port, "_leaf_shapes", lambda config: shapes)
        return torch_port.to_params(random_state_dict(config, seed), config)


def run(fn: Callable[..., Any], arrays: Any, gradients: bool) -> Any:
    """What fn gives and, if wanted, gradients by all arrays of a product with random numbers."""
    return program(fn, len(arrays), gradients)(*arrays)


def run_twice(fn: Callable[..., Any], arrays: Any, gradients: bool) -> tuple[Any, Any]:
    """The same, and the same of arrays whose last is another by a rounding."""
    both = program(fn, len(arrays), gradients)
    up = golden.normal(11, *arrays[-1].shape) > 0
    rounded = jnp.nextafter(arrays[-1], jnp.where(up, jnp.inf, -jnp.inf))
    return both(*arrays), both(*arrays[:-1], rounded)


def program(fn: Callable[..., Any], count: int, gradients: bool) -> Callable[..., Any]:
    if not gradients:
        return compilation.jit(fn)

    def loss(*arrays: Any) -> Any:
        out = fn(*arrays)
        leaves = jax.tree.leaves(out)
        weights = (golden.normal(7 + i, *leaf.shape) for i, leaf in enumerate(leaves))
        return sum(jnp.vdot(a, w) for a, w in zip(leaves, weights, strict=True)), out

    def both(*arrays: Any) -> Any:
        (_, out), grads = jax.value_and_grad(loss, tuple(range(count)), has_aux=True)(*arrays)
        return out, grads

    return compilation.jit(both)


# Stages of the encoder.


class StageForm(NamedTuple):
    stripe_bytes: int | None = None
    remat: bool = False
    platform: str = "cpu"


class StageCase(NamedTuple):
    config: ModelConfig
    shape: tuple[int, int, int, int]
    masked: bool
    form: StageForm


@st.composite
def stage_cases(draw: Any) -> StageCase:
    heads = draw(st.sampled_from((1, 2)))
    config = ModelConfig(
        dim=draw(st.sampled_from((2, 4, 6, 16))),
        heads=(heads, 1, 1, 1),
        blocks=(draw(st.integers(1, 3)), 1, 1, 1),
        ffn_expansion=draw(st.sampled_from((0.6, 1.5, 2.66))),
        layer_norm_eps=draw(st.sampled_from((1e-5, 0.1))),
        mask_grid=draw(st.sampled_from((2, 4))),
        flow_steps=1,
        flow_hidden=2,
    )
    size = st.integers(4, 40)
    shape = (draw(st.integers(1, 3)), draw(size), draw(size), config.dim)
    stripe_bytes = st.sampled_from((None, 1, 20_000))
    platforms = st.sampled_from(("cpu", "tpu", "gpu"))
    form = StageForm(draw(stripe_bytes), draw(st.booleans()), draw(platforms))
    return StageCase(config, shape, draw(st.booleans()), form)


def stage_inputs(case: StageCase) -> tuple[Any, jax.Array, jax.Array]:
    """A stage's parameters, of which some q are tiny, its input, some of it small, and its mask."""
    params = weights(case.config, 0)["encoder"]["encoder_level1"]["blocks"]
    if not case.masked:
        params = {name: p for name, p in params.items() if name != "mask"}
    b, height, width, d = case.shape
    attn = params["attn"] | {"qkv": params["attn"]["qkv"].at[0, :, : d // 2].multiply(1e-5)}
    params = params | {"attn": attn}
    x = golden.normal(1, *case.shape) * (0.1 + golden.normal(2, b, height, width, 1) ** 2)
    lost = golden.normal(3, b, height, width, 1) > 0.5
    mask = reflect_pad(jnp.asarray(lost, jnp.float32), case.config.mask_grid)
    return params, jnp.asarray(x), mask


def by_reference(case: StageCase, mask: jax.Array) -> Callable[..., Any]:
    """What the stage adds to x, of (parameters, x)."""

    def stage(params: Any, x: jax.Array) -> jax.Array:
        start = x
        for block in unstack(params):
            given = mask if case.masked else None
            x = reference.block(block, case.config, x, case.config.heads[0], given)
        return x - start

    return stage


def by_stage(case: StageCase, mask: jax.Array) -> Callable[..., Any]:
    config, form = case.config, case.form
    rows = Rows(form.stripe_bytes)
    module = Stage(config, config.blocks[0], config.heads[0], rows, form.remat)
    attention = ops.cell_attention(mask, config.mask_grid) if case.masked else None

    def stage(params: Any, x: jax.Array) -> jax.Array:
        y = module.apply(
            {"params": {"blocks": params}}, ops.hidden_cast(x, config.policy), attention
        )
        return y.astype(jnp.float32) - x

    return stage


def check_stage(case: StageCase, gradients: bool) -> None:
    params, x, mask = stage_inputs(case)
    expected, rounded = run_twice(by_reference(case, mask), (params, x), gradients)
    with platform(case.form.platform):
        found = run(by_stage(case, mask), (params, x), gradients)
    close(found, expected, *((GRADIENTS, rounded) if gradients else (VALUES,)))


FIRST = ModelConfig(dim=16, heads=(2, 1, 1, 1), blocks=(2, 1, 1, 1), flow_steps=1, flow_hidden=2)


# enough pixels and channels for the CPU's own 3x3 convolution, and stripes that overlap
@example(StageCase(FIRST, (1, 41, 30, 16), True, StageForm(1)))
@given(stage_cases())
@few(1)
def test_stages(case: StageCase) -> None:
    check_stage(case, gradients=False)


@pytest.mark.parametrize(
    "form", [StageForm(), pytest.param(StageForm(1, True), marks=pytest.mark.slow)]
)
def test_gradients_of_a_stage(form: StageForm) -> None:
    check_stage(StageCase(FIRST, (1, 20, 12, 16), True, form), gradients=True)


def test_a_stage_in_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a TPU does in bfloat16, in float32, in which it can be compared."""
    monkeypatch.setattr(tpu, "has_products_to_spare", lambda dtype: True)
    case = StageCase(FIRST, (2, 12, 20, 16), True, StageForm(platform="tpu"))
    check_stage(case, gradients=True)


@pytest.mark.slow
@given(stage_cases())
@few(16)
def test_many_stages(case: StageCase) -> None:
    check_stage(case, gradients=True)


@pytest.mark.parametrize("platform_name", ["cpu", pytest.param("tpu", marks=pytest.mark.slow)])
def test_a_stage_in_half_precision(platform_name: str) -> None:
    case = StageCase(
        dataclasses.replace(FIRST, policy="bfloat16"), (2, 12, 20, 16), True,
        StageForm(platform=platform_name),
    )  # fmt: skip
    params, x, mask = stage_inputs(case)
    expected = compilation.jit(by_reference(case, mask))(params, x)
    with platform(platform_name):
        found = compilation.jit(by_stage(case, mask))(params, x)
    close(found, expected, HALF)
    with pytest.raises(AssertionError):  # it was half precision
        close(found, expected, 1e-5)


# Levels of the flow.


class LevelForm(NamedTuple):
    remat: str = "none"
    stripe_bytes: int | None = None
    inverted: bool = False
    """W^-1 made once, in float64."""
    platform: str = "cpu"


class LevelCase(NamedTuple):
    config: ModelConfig
    level: int
    shape: tuple[int, int, int]
    direction: str
    form: LevelForm


@st.composite
def level_cases(draw: Any) -> LevelCase:
    config = ModelConfig(
        dim=2,
        heads=(1, 1, 1, 1),
        blocks=(1, 1, 1, 1),
        flow_additional_steps=draw(st.integers(1, 2)),
        flow_steps=draw(st.integers(1, 3)),
        flow_hidden=draw(st.sampled_from((2, 8, 16))),
        scale_shift=draw(st.sampled_from((2.0, 0.5))),
        scale_eps=draw(st.sampled_from((1e-4, 0.05))),
    )
    size = st.integers(2, 48)
    shape = (draw(st.integers(1, 3)), draw(size), draw(size))
    direction = draw(st.sampled_from(("forward", "inverse")))
    forms = st.builds(
        LevelForm,
        st.sampled_from(("none", "blocks", "reversible")),
        st.just(None),
        st.just(False),
        st.sampled_from(("cpu", "tpu", "gpu")),
    )
    if direction == "inverse":
        forms |= st.builds(LevelForm, st.just("none"), st.sampled_from((1, 9000)), st.booleans())
    return LevelCase(config, draw(st.integers(1, 3)), shape, direction, draw(forms))


def level_inputs(case: LevelCase) -> tuple[Any, jax.Array, jax.Array]:
    """A level's parameters, what it transforms, and its condition."""
    b, height, width = case.shape  # after the squeeze
    c = 3 * 4**case.level
    shape = (b, height, width, c)
    if case.direction == "forward":
        shape = (b, 2 * height, 2 * width, c // 4)
    condition = golden.normal(2, b, height, width, case.config.condition_channels)
    params = weights(case.config, 1)["flow"][f"level{case.level}"]
    return params, jnp.asarray(golden.normal(1, *shape)), jnp.asarray(condition)


def plain_level(case: LevelCase) -> Callable[..., Any]:
    run = {"forward": reference.level_forward, "inverse": reference.level_inverse}[case.direction]
    return lambda p, x, c: run(reference.open_level(p), case.config, x, c)


def fast_level(case: LevelCase) -> Callable[..., Any]:
    form: Any = case.form
    module = FlowLevel(case.config, form.remat, Rows(form.stripe_bytes))

    def level(params: Any, x: jax.Array, condition: jax.Array) -> Any:
        variables = {"params": params}
        if form.inverted:
            variables["inverse"] = inverses
        return module.apply(variables, x, condition, method=case.direction)

    inverses = invert_weights(level_inputs(case)[0]) if form.inverted else None
    return level


def check_level(case: LevelCase, gradients: bool) -> None:
    inputs = level_inputs(case)
    # only training takes gradients of the flow, and it has no stripes there
    gradients = gradients and case.form.stripe_bytes is None and not case.form.inverted
    expected = run(plain_level(case), inputs, gradients)
    with platform(case.form.platform):
        found = run(fast_level(case), inputs, gradients)
    close(found, expected, GRADIENTS if gradients else VALUES)


THIN = ModelConfig(
    dim=2, heads=(1, 1, 1, 1), blocks=(1, 1, 1, 1), flow_steps=2, flow_hidden=16, scale_eps=0.05
)


# stripes that overlap
@example(LevelCase(THIN, 1, (2, 41, 5), "inverse", LevelForm(stripe_bytes=1)))
@given(level_cases())
@few(1)
def test_levels(case: LevelCase) -> None:
    check_level(case, gradients=False)


@pytest.mark.slow  # tests/test_reversible.py holds it to autodiff
def test_gradients_of_a_level() -> None:
    case = LevelCase(THIN, 1, (2, 8, 6), "forward", LevelForm("reversible"))
    check_level(case, gradients=True)


@pytest.mark.slow
@given(level_cases())
@few(16)
def test_many_levels(case: LevelCase) -> None:
    check_level(case, gradients=True)


@pytest.mark.parametrize("direction", ["forward", pytest.param("inverse", marks=pytest.mark.slow)])
def test_a_level_in_half_precision(direction: str) -> None:
    config = dataclasses.replace(THIN, policy="bfloat16")
    case = LevelCase(config, 2, (2, 6, 8), direction, LevelForm())
    inputs = level_inputs(case)
    expected, found = (compilation.jit(f(case))(*inputs) for f in (plain_level, fast_level))
    close(found, expected, HALF)
    with pytest.raises(AssertionError):  # it was half precision
        close(found, expected, 1e-5)


def test_a_level_sets_its_actnorms() -> None:
    """With an eps that counts."""
    config = dataclasses.replace(THIN, actnorm_eps=0.2)
    case = LevelCase(config, 1, (2, 6, 8), "forward", LevelForm())
    params, x, condition = level_inputs(case)
    flat: Any = flatten_dict(params)
    zeroed = {k: 0 * a if k[-2].startswith("actnorm") else a for k, a in flat.items()}
    params = unflatten_dict(zeroed)

    def fast(params: Any) -> Any:
        level = FlowLevel(config)
        return level.apply(
            {"params": params}, x, condition, method="forward", mutable=[ACTNORM_INIT]
        )[1][ACTNORM_INIT]

    def plain(params: Any) -> Any:
        level = reference.open_level(params)
        set_one = reference_init.set_actnorm(config.actnorm_eps)
        reference.level_forward(level, config, x, condition, set_one)
        return level

    found, level = (compilation.jit(f)(params) for f in (fast, plain))
    expected = {}
    for path in flatten_dict(found):
        group, _, *inner = path
        expected[path] = jnp.stack([reference_init.leaf(step, inner) for step in level[group]])
    close(flatten_dict(found), expected, VALUES)


# Whole models.


class ModelCase(NamedTuple):
    config: ModelConfig
    shape: tuple[int, int, int]
    stripe_bytes: int | None
    remat: str


@st.composite
def model_cases(draw: Any) -> ModelCase:
    sizes = st.sampled_from((1, 2))
    config = ModelConfig(
        dim=draw(st.sampled_from((2, 4, 8))),
        blocks=(draw(sizes), draw(sizes), draw(sizes), draw(sizes)),
        refinement_blocks=draw(sizes),
        heads=(draw(sizes), 2, draw(sizes), 4),
        mask_grid=draw(st.sampled_from((2, 4))),
        mask_threshold=draw(st.sampled_from((0.2, 0.6))),
        mask_attention=draw(st.booleans()),
        flow_additional_steps=draw(sizes),
        flow_steps=draw(sizes),
        flow_hidden=draw(st.sampled_from((2, 16))),
        quantization=draw(st.sampled_from((32, 8))),
    )
    size = st.integers(2, 6).map(lambda n: 8 * n)
    shape = (draw(st.integers(1, 2)), draw(size), draw(size))
    stripe_bytes = draw(st.sampled_from((None, 1, 50_000)))
    return ModelCase(
        config, shape, stripe_bytes, draw(st.sampled_from(("none", "blocks", "reversible")))
    )


def model_inputs(shape: tuple[int, int, int]) -> list[jax.Array]:
    """gt, lr, mask, noise and a latent."""
    b, height, width = shape
    rng = np.random.default_rng(height + width)
    image = rng.integers(0, 60, (b, height, width, 3), np.uint8)
    image[rng.random((b, height, width)) < 0.2] = 0
    image[:, height // 3 : height // 2, width // 4 : width // 2] = 0
    gt, noise = rng.random((2, b, height, width, 3))
    z = rng.standard_normal((b, height // 8, width // 8, 192))
    lr, mask = ops.network_input(image)
    return [jnp.asarray(gt, jnp.float32), lr, mask, jnp.asarray(noise - 0.5, jnp.float32),
            jnp.asarray(z, jnp.float32)]  # fmt: skip


def objective(model: ZmarSNFlow) -> Callable[..., Any]:
    def objective(params: Any, gt: Any, lr: Any, mask: Any, noise: Any, z: Any) -> Any:
        variables = {"params": params}
        features = model.apply(variables, lr, mask, method="features")
        nll = model.apply(variables, gt, features, noise, method="conditional_nll")
        return nll, model.apply(variables, z, features, method="decode")

    return objective


@pytest.mark.slow
@given(model_cases())
@few(3)
def test_whole_models(case: ModelCase) -> None:
    """Conditions, nll, restorations and all gradients."""
    config, remat = case.config, case.remat
    forms: Any = (
        ZmarSNFlow(config, form="reference"),
        ZmarSNFlow(config, case.stripe_bytes, remat),  # pyright: ignore[reportArgumentType]
    )
    params, inputs = weights(config, 2), model_inputs(case.shape)
    expected, found = (run(objective(form), (params, *inputs), True) for form in forms)
    close(found, expected, 5 * GRADIENTS)
    image = {"params": params}, *inputs[1:3]
    encode = [functools.partial(form.apply, method="encode") for form in forms]
    expected, found = (run(method, image, False) for method in encode)
    close(found, expected, GRADIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("stripe_bytes", [None, 1])
def test_devices(stripe_bytes: int | None) -> None:
    config = ModelConfig(dim=4, heads=(1, 2, 1, 4), blocks=(1, 1, 1, 1), flow_steps=2)
    params, (_, lr, mask, _, z) = weights(config, 2), model_inputs((1, 136, 40))
    image = np.round(255 * (np.exp(lr) - 1e-3)).astype(np.uint8)
    variables = {"params": params, "inverse": invert_weights(params)}
    programs = make_split_programs(config, stripe_bytes, 3, 136)
    features = programs.encode(variables, image)
    found = programs.picture(programs.decode(variables, z, features))
    model = ZmarSNFlow(config, form="reference")
    restore = compilation.jit(functools.partial(model.apply, method="inverse"))
    expected = np.clip(restore({"params": params}, z, lr, mask)[0], 0, 1)
    close(found, expected, GRADIENTS)
