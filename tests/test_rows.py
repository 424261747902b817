"""Stripes and shares of an image give what the whole image gives, within bounded memory."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from zmar_jax import ops
from zmar_jax.benchmark.cost import multiply_adds
from zmar_jax.config import PRESETS, ConfigError, ModelConfig
from zmar_jax.flow import condition, invert_weights
from zmar_jax.kernels import conv3, winograd
from zmar_jax.models import ZmarSNFlow, attention, param_shapes
from zmar_jax.models.attention import Block, Stage
from zmar_jax.restore import memory
from zmar_jax.restore.memory import GIB, MemoryLimitError, Plan
from zmar_jax.restore.programs import make_programs, make_split_programs
from zmar_jax.restore.restorer import Restorer
from zmar_jax.runtime import compilation
from zmar_jax.runtime.memory import _container_memory
from zmar_jax.tiling.rows import Rows, Window, stripe_rows
from zmar_jax.tiling.shares import LEAST, Shares, most_shares

TINY, FULL = PRESETS["tiny"], PRESETS["zmar_snflow"]
# multiples of 8 that are not of 16 or 32: padded cells at level 3, stripes and shares that overlap
SIZES = ((88, 56), (136, 40))


@functools.cache
def variables() -> dict[str, Any]:
    params = golden.params("tiny", 0)
    return {"params": params, "inverse": invert_weights(params)}


@functools.cache
def inputs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark picture with lost cells, and a latent."""
    rng = np.random.default_rng(height)
    image = rng.integers(0, 60, (1, height, width, 3), np.uint8)
    image[:, height // 3 : height // 2, width // 4 : width // 2] = 0
    return image, rng.standard_normal((1, height // 8, width // 8, 192)).astype(np.float32)


@functools.cache
def whole(height: int, width: int) -> tuple[Any, jax.Array, jax.Array]:
    """Conditions, pixels and logdet from the whole image."""
    return run(ZmarSNFlow(TINY), height, width)


def run(model: ZmarSNFlow, height: int, width: int) -> tuple[Any, jax.Array, jax.Array]:
    image, z = inputs(height, width)

    def restore(variables: Any, image: Any, z: Any) -> Any:
        features = model.apply(variables, *ops.network_input(image), method="features")
        return features, *model.apply(variables, z, features, method="decode")

    return compilation.jit(restore)(variables(), image, z)


def same(found: Any, expected: Any) -> None:
    """Within 1e-4 of the standard deviation of features, and of 1 of pixels."""
    for key, array in expected[0].items():
        np.testing.assert_allclose(found[0][key], array, atol=1e-4 * array.std(), err_msg=key)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stripe_bytes"),
    [
        (SIZES[0], 1),
        pytest.param(SIZES[0], 20_000, marks=pytest.mark.slow),
        pytest.param(SIZES[1], 1, marks=pytest.mark.slow),
        pytest.param(SIZES[1], 60_000, marks=pytest.mark.slow),
    ],
)
def test_stripes_equal_the_whole(size: tuple[int, int], stripe_bytes: int) -> None:
    found, expected = run(ZmarSNFlow(TINY, stripe_bytes), *size), whole(*size)
    same(found, expected)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5)


def check_gradients(found: Any, expected: Any) -> None:
    """Apart by at most 1e-4 of each leaf's largest."""
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        atol = 1e-4 * float(np.abs(b).max())
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_gradients_of_a_stage_in_stripes_are_those_of_the_whole() -> None:
    """Of the weights and of x; stripes of 8 rows, the last of which overlaps."""
    image, _ = inputs(*SIZES[0])
    _, mask = ops.network_input(np.concatenate([image, image[:, ::-1]]))
    shape = *mask.shape[:3], 8
    attention_of = ops.cell_attention(mask, 4)
    x, weights = (golden.normal(i, *shape) for i in (0, 1))
    params = golden.params("tiny", 0)["encoder"]["encoder_level1"]
    stages = Stage(TINY, 2, 1), Stage(TINY, 2, 1, Rows(1), remat=True)

    def gradients(stage: Stage) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.vdot(stage.apply({"params": params}, x, attention_of), weights)

        return compilation.jit(jax.grad(loss, (0, 1)))(params, x)

    expected, found = map(gradients, stages)
    check_gradients(found, expected)


@pytest.mark.slow
def test_gradients_in_stripes_are_those_of_the_whole() -> None:
    """Of the weights and of the image, by 1e-4 of each leaf's largest."""
    image, _ = inputs(*SIZES[1])
    lr, mask = ops.network_input(np.concatenate([image, image[:, ::-1]]))
    weights = jax.eval_shape(lambda: ZmarSNFlow(TINY).apply(variables(), lr, mask, method="encode"))
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal(w.shape).astype(np.float32) for k, w in weights.items()}

    def gradients(model: ZmarSNFlow) -> Any:
        def loss(params: Any, lr: jax.Array) -> jax.Array:
            found = model.apply({"params": params}, lr, mask, method="encode")
            return sum((jnp.vdot(found[k], w) for k, w in weights.items()), jnp.zeros(()))

        return compilation.jit(jax.grad(loss, (0, 1)))(variables()["params"], lr)

    found = gradients(ZmarSNFlow(TINY, 60_000, remat="blocks"))
    check_gradients(found, gradients(ZmarSNFlow(TINY)))


@pytest.mark.slow
def test_a_channel_that_is_zero_has_a_gradient() -> None:
    """As in PyTorch, where the norm of zeros has the gradient 0."""
    block = Block(TINY, 8, 1)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    params = block.init(jax.random.key(1), x)["params"]
    params["attn"]["qkv_dwconv"] = params["attn"]["qkv_dwconv"].at[..., 3].set(0)

    def loss(params: Any) -> jax.Array:
        return jnp.square(block.apply({"params": params}, x)[0]).sum()

    for path, leaf in jax.tree.leaves_with_path(compilation.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


def test_gradients_of_stripes_keep_what_is_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute MDTA's sums and ZMA's result once."""
    attention_of = ops.cell_attention(jnp.ones((1, 64, 16, 1)), 4)
    x = jnp.ones((1, 64, 16, 8))

    def cost_of_gradient() -> int:
        params = jax.eval_shape(Stage(TINY, 1, 1).init, jax.random.key(0), x, attention_of)
        stage = Stage(TINY, 1, 1, Rows(1 << 14), remat=True)
        loss = lambda params: stage.apply(params, x, attention_of).sum()  # noqa: E731
        return multiply_adds(jax.grad(loss), params)

    kept = cost_of_gradient()
    monkeypatch.setattr(attention, "checkpoint_name", lambda x, name: x)
    assert kept < 0.92 * cost_of_gradient()  # with one of the two 0.94 or 0.97


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_stripes_are_those_of_one_image_whatever_the_batch(batch: int) -> None:
    """A batch's stripes must not become narrow: eight rows at batch 32 were mostly halo."""
    assert stripe_rows((batch, 400, 600, 48), 48, 1, 24 << 20) == 200
    cells = Rows(4 * 4 * 20 * 6 * 10)  # ten rows of each of four rows of cells
    seen = []

    def fn(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return x

    attention = jnp.ones((batch, 4, 4, 4, 4)) / 16
    jax.eval_shape(lambda x: cells.mix_cells(fn, x, attention, 6), jnp.zeros((batch, 80, 20, 6)))
    assert min(shape[1] for shape in seen) == 10 + 2


def test_stripes_of_the_smallest_size_are_several() -> None:
    assert stripe_rows((1, 88, 56, 8), 24, 1, 1) == 8
    assert stripe_rows((1, 44, 28, 12), 24, 1, 1) == 8  # the last one overlaps
    assert stripe_rows((1, 44, 28, 12), 24, 2, 1) == 11
    assert stripe_rows((1, 88, 56, 8), 24, 1, None) == 88


def split_programs(height: int, devices: int, stripe_bytes: int | None = None) -> Any:
    return make_split_programs(TINY, stripe_bytes, devices, height)


@pytest.mark.parametrize(
    ("size", "devices", "stripe_bytes"),
    [
        pytest.param(SIZES[1], 4, None, marks=pytest.mark.slow),
        pytest.param((128, 40), 4, None, marks=pytest.mark.slow),  # shares that do not overlap
        pytest.param((104, 56), 3, None, marks=pytest.mark.slow),
        pytest.param((72, 56), 2, None, marks=pytest.mark.slow),
        pytest.param((184, 40), 4, 20_000, marks=pytest.mark.slow),
    ],
)
def test_devices_equal_one(size: tuple[int, int], devices: int, stripe_bytes: int | None) -> None:
    image, z = inputs(*size)
    programs = split_programs(size[0], devices, stripe_bytes)
    features = programs.encode(variables(), image)
    pixels = programs.picture(programs.decode(variables(), z, features))
    assert len(features["d2_f"].sharding.device_set) == devices
    np.testing.assert_allclose(pixels, np.clip(whole(*size)[1], 0, 1), atol=1e-4)


def test_a_restorer_over_devices_restores_any_size() -> None:
    image = inputs(136, 40)[0][0, :131, :37]
    alone, four = (Restorer(TINY, golden.params("tiny", 0), devices=n) for n in (1, 4))
    assert four.programs(136, 40).shares.count == 4
    difference = alone(image).astype(int) - four(image)
    assert np.abs(difference).max() <= 1  # where rounding falls on the other side of a half
    assert (difference == 0).mean() > 0.999


def test_plans_without_stripes() -> None:
    plans = [memory.choose(TINY, 400, 600, 4 * GIB, stripes=s) for s in ("auto", "none")]
    assert [plan.stripe_bytes for plan in plans] == [compilation.STRIPE_BYTES, None]
    restorer = Restorer(FULL, {}, memory=16 * GIB, stripes="none")
    with pytest.raises(MemoryLimitError, match=r"more --memory or --devices, or --stripes auto$"):
        restorer(np.zeros((3000, 4000, 3), np.uint8))
    with pytest.raises(ConfigError, match="stripes must be auto or none, got 'some'"):
        Restorer(FULL, {}, stripes="some")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_restorer_without_stripes_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "STRIPE_BYTES", 1)
    image = inputs(136, 40)[0][0, :131, :37]
    striped, whole = (Restorer(TINY, golden.params("tiny", 0), stripes=s) for s in ("auto", "none"))
    difference = striped(image, 0.5).astype(int) - whole(image, 0.5)
    assert np.abs(difference).max() <= 1  # where rounding falls on the other side of a half
    assert (difference == 0).mean() > 0.999


def lowered(programs: Any, config: ModelConfig, height: int, width: int) -> tuple[Any, Any]:
    """Both programs compiled for this size, from shapes alone."""
    params = param_shapes(config)
    inverse = {}
    for path, leaf in flatten_dict(params).items():
        if path[-2:] == ("invconv", "weight"):
            inverse[path] = leaf
            inverse[*path[:-1], "logabsdet"] = jax.ShapeDtypeStruct(leaf.shape[:1], leaf.dtype)
    shapes = {"params": params, "inverse": unflatten_dict(inverse)}
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    z = jax.ShapeDtypeStruct((1, height // 8, width // 8, 192), jnp.float32)
    features = jax.eval_shape(programs.encode, shapes, image)
    encode = programs.encode.lower(shapes, image).compile()
    return encode, programs.decode.lower(shapes, z, features).compile()


def taken(program: Any) -> int:
    """Bytes of arguments, outputs and temporaries."""
    m = program.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes


@pytest.mark.slow
def test_devices_exchange_only_halos_and_sums() -> None:
    """No device sees the activations of all, and four need little more than a quarter each."""
    one = lowered(make_programs(TINY, None), TINY, 1024, 64)
    four = lowered(split_programs(1024, 4), TINY, 1024, 64)
    for alone, shared in zip(one, four, strict=True):
        collectives = set(re.findall(r" (all-\w+|reduce-scatter)\(", shared.as_text()))
        assert collectives <= {"all-reduce"}
        temporaries = [p.memory_analysis().temp_size_in_bytes for p in (alone, shared)]
        assert temporaries[1] < 0.35 * temporaries[0]


@pytest.mark.slow
def test_twelve_megapixels_take_less_than_16_gib() -> None:
    for program in lowered(make_programs(FULL, compilation.STRIPE_BYTES), FULL, 3000, 4000):
        assert taken(program) < 15 * GIB
    plan = memory.choose(FULL, 3000, 4000, 16 * GIB)
    assert plan.stripe_bytes == compilation.STRIPE_BYTES


@pytest.mark.parametrize(
    ("config", "height", "width", "stripe_bytes"),
    [
        (TINY, 400, 600, None),
        pytest.param(TINY, 1000, 1496, 1 << 20, marks=pytest.mark.slow),
        pytest.param(FULL, 400, 600, None, marks=pytest.mark.slow),
        pytest.param(FULL, 400, 600, 24 << 20, marks=pytest.mark.slow),
        pytest.param(FULL, 3000, 4000, 24 << 20, marks=pytest.mark.slow),
        pytest.param(FULL, 3000, 4000, 256 << 20, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_xlas_own_count(
    config: ModelConfig,
    height: int,
    width: int,
    stripe_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if stripe_bytes is None:  # as on an accelerator, which has the plain forms
        monkeypatch.setattr(winograd, "worthwhile", lambda x: False)
        monkeypatch.setattr(condition, "project_in_turn", condition.project_together)
    programs = lowered(make_programs(config, stripe_bytes), config, height, width)
    counted = max(taken(p) for p in programs) + memory.PROGRAM
    estimate = memory.need(config, height, width, stripe_bytes)
    assert counted <= estimate <= 1.3 * counted


def test_stripes_where_the_whole_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    plans = [memory.choose(FULL, 1000, 1496, n * GIB) for n in (16, 4)]
    assert plans[0].stripe_bytes is None
    assert plans[1].stripe_bytes is not None
    assert all(plan.need <= n * GIB for plan, n in zip(plans, (16, 4), strict=True))
    alone, shared = (memory.choose(FULL, 3000, 4000, 16 * GIB, n) for n in (1, 8))
    assert isinstance(alone, Plan)
    assert alone.stripe_bytes is not None
    assert shared.devices == 8
    assert shared.stripe_bytes is None


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": 100, "memory.current": 90, "memory.stat": "inactive_file 30"}, 40),
        ({"memory.max": "max", "memory.current": 90}, math.inf),
        ({}, math.inf),
        (
            {
                "memory/memory.limit_in_bytes": 100,
                "memory/memory.usage_in_bytes": 90,
                "memory/memory.stat": "cache 30\ninactive_file 20\ntotal_inactive_file 30",
            },
            30,
        ),
    ],
)
def test_a_containers_limit(tmp_path: Path, files: dict[str, Any], left: float) -> None:
    (tmp_path / "memory").mkdir()
    for name, value in files.items():
        (tmp_path / name).write_text(f"{value}\n")
    assert _container_memory(tmp_path) == left


def test_what_cannot_fit_is_refused() -> None:
    restorer = Restorer(FULL, {}, memory=2 * GIB)
    expected = r"^4000x3000 pixels \(width x height\) need 1\d\.\d GiB of memory, and 2\.0 GiB"
    with pytest.raises(MemoryLimitError, match=expected):
        restorer(np.zeros((3000, 4000, 3), np.uint8))


few = settings(max_examples=25, deadline=None)


@few
@given(
    height=st.integers(3, 60),
    stripe_bytes=st.integers(1, 3000),
    halo=st.integers(1, 2),
    counted=st.booleans(),
)
def test_windows_see_their_neighbours(
    height: int, stripe_bytes: int, halo: int, counted: bool
) -> None:
    x = np.random.default_rng(height).standard_normal((2, height, 3, 2)).astype(np.float32)
    kernel = np.ones((3, 3, 2, 2), np.float32)

    def local(window: Window, x: jax.Array) -> Any:
        y = x
        for _ in range(halo):
            y = conv3(y + 1, kernel) / 9
        y = window.crop(y)
        return y, window.counted(y).sum((1, 2))

    rows = Rows(stripe_bytes)
    y, total = rows.apply(local, x, halo=halo, width=2, in_place=counted)
    expected, sums = local(Window(height), x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(total, sums, atol=1e-3)


def test_a_halo_wider_than_the_neighbours_is_refused() -> None:
    """Else rows of the device itself would stand for those of the next but one, in silence."""
    shares = Shares("rows", 3, 136, 8)
    coarsest = jnp.zeros((1, shares.rows // 8, 4, 1))
    with pytest.raises(ValueError, match=r"5 rows apart do not have the 6 around .* raise LEAST"):
        shares.window(coarsest, 3)


@given(units=st.integers(2, 1000), stride=st.sampled_from((4, 8)), count=st.integers(1, 64))
def test_shares_cover_the_rows(units: int, stride: int, count: int) -> None:
    height = stride * units
    if count > most_shares(height, stride):
        with pytest.raises(ValueError, match="can be split over at most"):
            Shares("rows", count, height, stride)
        return
    shares = Shares("rows", count, height, stride)
    ends = [start + shares.rows for start in shares.starts]
    gaps = np.diff(shares.starts)
    assert shares.starts[0] == 0
    assert ends[-1] == height
    assert np.all(gaps >= LEAST * stride)
    assert np.all(gaps <= shares.rows)
    assert np.all(np.array(shares.starts) % stride == 0)
    assert height - shares.rows * count <= 0
