"""The encoder's TPU kernels: interpreted, against the plain reference; compiled, for every chip."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from zmar_jax.benchmark import topology
from zmar_jax.config import Config, ConfigError, ModelConfig, TrainConfig, override
from zmar_jax.kernels.pallas import ffn
from zmar_jax.models import reference
from zmar_jax.models.attention import Block
from zmar_jax.runtime import kernels, sharding

EPS = 1e-5
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (extra tpu)",
)


def drawn(shape: tuple[int, ...], hidden: int, seed: int = 0) -> list[jax.Array]:
    """x, the five weights, and the gradient of the result."""
    d = shape[-1]
    shapes = [shape, (d,), (d,), (d, 2 * hidden), (3, 3, 1, 2 * hidden), (hidden, d), shape]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    x, scale, *rest = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    return [
        x,
        1 + 0.2 * scale,
        *(a * n for a, n in zip(rest, (0.2, 0.5, 0.3, 0.3, 1), strict=True)),
    ]


def plain(x: Any, scale: Any, bias: Any, into: Any, taps: Any, back: Any) -> Any:
    normed = reference.layer_norm({"scale": scale, "bias": bias}, x, EPS)
    return x + reference.gdfn({"project_in": into, "dwconv": taps, "project_out": back}, normed)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(fn: Any, dy: Any, *args: Any) -> Any:
    y, pull = jax.vjp(fn, *args)
    return y, *pull(dy)


def apart(found: Any, expected: Any) -> float:
    """The largest difference, of the standard deviation of what is expected."""
    found, expected = (np.asarray(a, np.float32) for a in (found, expected))
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize(
    ("shape", "hidden", "dtype", "allowed"),
    [
        ((1, 3, 5, 6), 7, jnp.float32, 1e-5),
        pytest.param((1, 2, 35, 6), 7, jnp.float32, 1e-5, marks=pytest.mark.slow),
        pytest.param((9, 2, 4, 6), 130, jnp.float32, 1e-5, marks=pytest.mark.slow),
        pytest.param((2, 1, 1, 8), 7, jnp.float32, 1e-5, marks=pytest.mark.slow),
        pytest.param((8, 5, 3, 8), 21, jnp.bfloat16, 0.05, marks=pytest.mark.slow),
    ],
)
def test_the_feed_forward_pass_and_its_gradients(shape, hidden, dtype, allowed):
    x, *weights, dy = drawn(shape, hidden)
    x, dy = x.astype(dtype), dy.astype(dtype)
    kernel = functools.partial(ffn.feed_forward, eps=EPS, interpret=True)
    found = value_and_gradients(kernel, dy, x, *weights)
    expected = value_and_gradients(plain, *(a.astype(jnp.float32) for a in (dy, x)), *weights)
    assert [a.dtype for a in found] == [dtype, dtype] + [jnp.float32] * 5
    assert max(map(apart, found, expected)) < allowed


def block(setting: Any) -> Block:
    return Block(ModelConfig(dim=4), 4, 1, kernels=setting)


def loss(setting: Any, params: Any, x: Any) -> Any:
    return jnp.square(block(setting).apply(params, x)[0]).mean()


@pytest.mark.slow
def test_a_block_takes_the_kernel_on_every_device_of_a_mesh(monkeypatch):
    monkeypatch.setattr(ffn, "INTERPRETED", True)
    x = jax.random.normal(jax.random.key(1), (4, 2, 3, 4))
    params = block("xla").init(jax.random.key(0), x)
    expected = jax.jit(jax.grad(functools.partial(loss, "xla"), (0, 1)))(params, x)
    mesh = sharding.make_mesh()
    assert mesh.size == 4
    program = sharding.jit(jax.grad(functools.partial(loss, "pallas"), (0, 1)), mesh)
    found = program(params, *sharding.shard_batch({"x": x}, mesh).values())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("setting", ["xla", "auto", "pallas"])
def test_the_setting_chooses(monkeypatch, setting):
    """On a chip of which it is known, `auto` takes the kernel for whole registers of images."""
    monkeypatch.setattr(ffn, "INTERPRETED", True)
    x, mesh = jnp.zeros((32, 2, 3, 4), jnp.bfloat16), sharding.make_mesh()
    params = jax.eval_shape(block("xla").init, jax.random.key(0), x)
    for chip in ("cpu", "another"):
        monkeypatch.setattr(kernels, "FASTER", {chip})
        for images in (32, 4):
            with jax.set_mesh(mesh):
                traced = str(jax.make_jaxpr(functools.partial(loss, setting))(params, x[:images]))
            ours = setting == "pallas" or (setting, chip, images) == ("auto", "cpu", 32)
            assert ("pallas_call" in traced, "shard_map" in traced) == (ours, ours)


def test_other_devices_refuse_and_auto_leaves_them_to_xla():
    x = jnp.zeros((8, 2, 3, 4), jnp.bfloat16)
    with pytest.raises(ConfigError, match=r"kernels=pallas needs one of TPU v4.*, the device is "):
        kernels.pallas_runs("pallas", x, 10)
    assert not kernels.pallas_runs("auto", x, 10)
    with pytest.raises(ConfigError, match="kernels must be one of"):
        override(Config(), ["train.kernels=triton"])
    assert TrainConfig().kernels == "auto"


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernels_compile(name, dtype):
    device = topology.devices(topology.parse_slice(name))[0]
    where = jax.sharding.SingleDeviceSharding(device)
    x, *weights, dy = (
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
        for a in jax.eval_shape(lambda: drawn((8, 12, 50, 48), 127))
    )
    x, dy = (jax.ShapeDtypeStruct(a.shape, dtype, sharding=where) for a in (x, dy))
    assert ffn.vmem_bytes(50, 48, 127) < kernels.VMEM[device.device_kind]
    kernel = functools.partial(ffn.feed_forward, eps=EPS)
    traced = value_and_gradients.trace(kernel, dy, x, *weights)
    text: Any = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    assert text.count("tpu_custom_call") == 2


@needs_libtpu
@pytest.mark.slow
def test_chips_split_the_batch_and_add_their_gradients():
    mesh = sharding.make_mesh(1, topology.devices(topology.parse_slice("v5e:2x2")))
    batch, whole = (NamedSharding(mesh, spec) for spec in (sharding.BATCH, sharding.REPLICATED))
    x, *weights, dy = (
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch if a.shape[0] == 32 else whole)
        for a in jax.eval_shape(lambda: drawn((32, 6, 16, 48), 127))
    )

    def run(dy: Any, *args: Any) -> Any:
        kernel = functools.partial(ffn.feed_forward, eps=EPS)
        y, pull = jax.vjp(functools.partial(sharding.over_batch, kernel), *args)
        return y, *pull(dy)

    compiled = sharding.jit(run, mesh).compile(dy, x, *weights)
    text: Any = compiled.as_text()
    assert text.count("tpu_custom_call") == 2
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert compiled.output_shardings[0].is_equivalent_to(batch, 4)
