"""`nnx.bridge.ToNNX` makes an NNX module of the model, as docs/deploying.md has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training import MODEL

from zmar_jax import ZmarSNFlow, torch_port
from zmar_jax.benchmark.weights import random_state_dict
from zmar_jax.ops import network_input
from zmar_jax.runtime import compilation

PARAMS = torch_port.to_params(random_state_dict(MODEL, 0), MODEL)


def with_params() -> nnx.Module:
    model = nnx.bridge.ToNNX(ZmarSNFlow(MODEL))
    for name, tree in PARAMS.items():
        setattr(model, name, jax.tree.map(nnx.Param, tree))
    return model


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    gt = jax.random.uniform(jax.random.key(0), (1, 8, 12, 3))
    lr, mask = network_input(0.1 * gt)
    return gt, lr, mask, jnp.zeros_like(gt)


@pytest.mark.slow
def test_it_computes_the_same_and_has_gradients(inputs):
    graph, params = nnx.split(with_params())

    @compilation.jit
    def bridged(params, *inputs):
        def loss(params):
            return nnx.merge(graph, params)(*inputs).sum()

        return jax.value_and_grad(loss)(params)

    @compilation.jit
    def plain(params, *inputs):
        def loss(params):
            return ZmarSNFlow(MODEL).apply({"params": params}, *inputs).sum()

        return jax.value_and_grad(loss)(params)

    (found, gradients), (expected, reference) = bridged(params, *inputs), plain(PARAMS, *inputs)
    assert np.allclose(found, expected, rtol=1e-6)
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(reference), strict=True)
    assert all(np.allclose(g, r, rtol=1e-4, atol=1e-5 * np.abs(r).max()) for g, r in pairs)


@pytest.mark.slow
def test_other_methods_by_name(inputs):
    gt, lr, mask, _ = inputs
    graph, state = nnx.split(with_params())

    @compilation.jit
    def there_and_back(state, gt, lr, mask):
        model = nnx.merge(graph, state)
        z, logdet = model(gt, lr, mask, method="forward")
        x, back = model(z, lr, mask, method="inverse")
        return x, logdet + back

    x, logdet = there_and_back(state, gt, lr, mask)
    assert np.allclose(x, gt, atol=1e-3)
    assert np.allclose(logdet, 0, atol=1e-2)
