"""A bijection is added to the coupling by being put into its list; all else follows.

`Shear` is such a bijection. It reads neighbours, the condition and the other half of the channels,
and has parameters of three distributions.
"""

import functools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from zmar_jax import ops, torch_port
from zmar_jax.config import ModelConfig
from zmar_jax.flow import Bijection, Coupling, FlowLevel, chain, initializers
from zmar_jax.kernels import conv1, conv3
from zmar_jax.models import param_shapes
from zmar_jax.runtime import compilation
from zmar_jax.tiling.rows import WHOLE, Rows, stripe_rows

SMALL = ModelConfig(
    dim=2,
    heads=(1, 1, 1, 1),
    flow_additional_steps=1,
    flow_steps=2,
    flow_hidden=4,
    quantization=31,  # as no other test has it: shapes are remembered by their configuration
)


class Shear(Bijection, nn.Module):
    """z1 -> (z1 + conv3(tanh(z2)) + conv1(cond)) * exp(logs)."""

    halo, cond_halo = 1, 0

    @nn.compact
    def shift_and_logs(self, z2: jax.Array, cond: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = z2.shape[-1]
        kernel = self.param("kernel", initializers.Normal(0.1), (3, 3, width, width))
        mix = self.param("mix", initializers.FanIn(), (cond.shape[-1], width))
        logs = self.param("logs", initializers.zeros, (width,))
        return conv3(jnp.tanh(z2), kernel) + conv1(cond, mix), logs

    def forward_rows(self, x: jax.Array, cond: Any = None) -> tuple[jax.Array, jax.Array]:
        z1, z2 = jnp.split(x, 2, -1)
        shift, logs = self.shift_and_logs(z2, cond)
        z1 = (z1 + shift) * ops.channels(jnp.exp(logs))
        return jnp.concatenate([z1, z2], -1), self._logdet(x, logs)

    def inverse_rows(self, y: jax.Array, cond: Any = None) -> tuple[jax.Array, jax.Array]:
        z1, z2 = jnp.split(y, 2, -1)
        shift, logs = self.shift_and_logs(z2, cond)
        z1 = z1 * ops.channels(jnp.exp(-logs)) - shift
        return jnp.concatenate([z1, z2], -1), -self._logdet(y, logs)

    def _logdet(self, x: jax.Array, logs: jax.Array) -> jax.Array:
        return jnp.full(x.shape[:2], x.shape[2] * logs.sum())


class Sheared(Coupling):
    """The coupling with one more bijection."""

    def setup(self):
        super().setup()
        self.shear = Shear()

    def bijections(self) -> list[Bijection]:
        return [*super().bijections(), self.shear]


@pytest.fixture(autouse=True)
def _in_the_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "Coupling", Sheared)


HEIGHT = 136


def arrays(height: int) -> tuple[jax.Array, jax.Array]:
    """Two images and their conditions."""
    x, cond = golden.normal(0, 2, height, 4, 3), golden.normal(1, 2, height // 2, 2, 12)
    return jnp.asarray(x), jnp.asarray(cond)


def level_init() -> Any:
    return functools.partial(FlowLevel(SMALL).init, method="forward")


def recorded() -> dict[str, Any]:
    return initializers.recorded(level_init(), *arrays(4))


@functools.cache
def variables() -> dict[str, Any]:
    """Parameters far from the initial values."""
    params = initializers.draw(recorded(), jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    moved = [a + 0.05 * golden.normal(i, *a.shape) for i, a in enumerate(leaves)]
    return {"params": tree.unflatten(moved)}


@functools.cache
def run(direction: str, rows: Rows = WHOLE) -> Any:
    return compilation.jit(functools.partial(FlowLevel(SMALL, rows=rows).apply, method=direction))


def test_it_is_initialised_as_it_says() -> None:
    leaves = flatten_dict(initializers.draw(recorded(), jax.random.key(0)))
    path = ("conditional", "step", "coupling", "shear")
    kernel, mix, logs = (np.asarray(leaves[*path, name]) for name in ("kernel", "mix", "logs"))
    assert kernel.shape == (2, 3, 3, 6, 6)
    np.testing.assert_allclose(kernel.std(), 0.1, rtol=0.1)
    assert np.abs(mix).max() <= 8**-0.5
    np.testing.assert_allclose(mix.std(), (3 * 8) ** -0.5, rtol=0.2)
    assert not logs.any()
    assert not np.array_equal(kernel[0], kernel[1])


def test_its_inverse_and_logdet() -> None:
    x, cond = arrays(HEIGHT)
    y, logdet = run("forward")(variables(), x, cond)
    again, back = run("inverse")(variables(), y, cond)
    np.testing.assert_allclose(again, x, atol=1e-4)
    np.testing.assert_allclose(back, -logdet, rtol=1e-5)
    small, cond = arrays(4)

    def flat(x: jax.Array) -> jax.Array:
        image = x.reshape(1, *small.shape[1:])
        y, _ = FlowLevel(SMALL).apply(variables(), image, cond[:1], method="forward")
        return y.reshape(-1)

    jacobian = compilation.jit(jax.jacrev(flat))(small[0].reshape(-1))
    expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    np.testing.assert_allclose(run("forward")(variables(), small, cond)[1][0], expected, rtol=1e-4)


def test_its_inverse_in_stripes_is_that_of_the_whole() -> None:
    _, cond = arrays(HEIGHT)
    latent = jnp.asarray(golden.normal(2, 2, HEIGHT // 2, 2, 12))
    assert stripe_rows((2, HEIGHT // 2, 2, 12), 1, 3, 1) < HEIGHT // 2 - 6
    for found, expected in zip(
        run("inverse", Rows(1))(variables(), latent, cond),
        run("inverse")(variables(), latent, cond),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", pytest.param("inverse", marks=pytest.mark.slow)])
def test_its_gradients_from_outputs_are_those_of_autodiff(direction: str) -> None:
    x, cond = arrays(16)
    if direction == "inverse":
        x = jnp.asarray(golden.normal(2, 2, 8, 2, 12))

    def gradient(level: FlowLevel) -> Any:
        def loss(variables: Any, x: jax.Array, cond: jax.Array) -> jax.Array:
            y, logdet = level.apply(variables, x, cond, method=direction)
            return jnp.square(y).sum() - logdet.sum()

        return compilation.jit(jax.grad(loss, (0, 1, 2)))(variables(), x, cond)

    found, expected = gradient(FlowLevel(SMALL, "reversible")), gradient(FlowLevel(SMALL))
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        tolerance = 1e-4 * float(np.abs(b).max())
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0, err_msg=jax.tree_util.keystr(path))


# What would be silent is an error.


def test_a_parameter_with_another_initialiser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initializers, "FanIn", nn.initializers.lecun_normal)
    with pytest.raises(ValueError, match=r"got others for conditional/step/coupling/shear/mix$"):
        recorded()


def test_a_weight_without_a_published_name_is_an_error() -> None:
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(SMALL))
    expected = (
        r"no published name for flow/level1/conditional/step/coupling/shear/kernel, .*keys.py"
    )
    with pytest.raises(torch_port.WeightsError, match=expected):
        torch_port.to_state_dict(params, SMALL)
