"""Gradients of flow steps from what comes out of them: memory that does not grow with the steps.

Autodiff keeps what each step has read. A bijection need not: the way back, from output to input,
recomputes it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import ops
from zmar_jax.flow.coupling import project
from zmar_jax.flow.health import HEALTH

Array = jax.Array
Step = Any
"""A `FlowStep` bound to no variables."""
Outputs = tuple[Array, Array, Any]

BACK = {"forward": "inverse", "inverse": "forward"}


class Weights(NamedTuple):
    """Of all steps, along the first axis."""

    params: Any
    kernel: Array | None
    """Of the condition's projection, [K, 3, 3, Cc, 2 * hidden]; None if unconditional."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(step: Step, direction: str, weights: Weights, x: Array, features: Array | None) -> Outputs:
    """The steps in this direction, `forward` or `inverse`; no gradients of gradients.

    Args:
      x: [B, H, W, C]; features: the level's condition [B, H, W, Cc], or None if unconditional.

    Returns:
      y [B, H, W, C], logdet [B], and HEALTH of all steps, stacked.
    """

    def body(x: Array, weights: Weights) -> tuple[Array, Any]:
        cond = _projection(step, weights.kernel, features)
        variables = {"params": weights.params}
        (y, logdet), kept = step.apply(variables, x, cond, method=direction, mutable=[HEALTH])
        return y, (logdet, kept.get(HEALTH, {}))

    y, (logdets, recorded) = lax.scan(body, x, weights, reverse=direction == "inverse")
    return y, logdets.sum(0), recorded


def _run_fwd(step: Step, direction: str, weights: Weights, x: Array, features: Array | None) -> Any:
    outputs = run(step, direction, weights, x, features)
    return outputs, (weights, outputs[0], features)


def _run_bwd(step: Step, direction: str, residuals: Any, cotangents: Outputs) -> Any:
    weights, y, features = residuals
    dy, dlogdet, _ = cotangents

    def body(carry: tuple[Array, Array, Any], weights: Weights) -> tuple[Any, Weights]:
        y, dy, dfeatures = carry
        cond, unproject = jax.vjp(functools.partial(_projection, step), weights.kernel, features)
        y, dy, dparams, dcond = _step_bwd(step, direction, weights.params, cond, y, dy, dlogdet)
        dkernel, more = unproject(dcond)
        return (y, dy, _add(dfeatures, more)), Weights(dparams, dkernel)

    # the shares of the steps are summed in float32 whatever the policy
    zeros = jax.tree.map(lambda f: jnp.zeros(f.shape, ops.wide(f.dtype)), features)
    ends, dweights = lax.scan(body, (y, dy, zeros), weights, reverse=direction == "forward")
    _, dx, dfeatures = ends
    return dweights, dx, jax.tree.map(lambda d, f: d.astype(f.dtype), dfeatures, features)


run.defvjp(_run_fwd, _run_bwd)


def _step_bwd(
    step: Step, direction: str, params: Any, cond: Any, y: Array, dy: Array, dlogdet: Array
) -> tuple[Array, Array, Any, Any]:
    """One step's input, and the gradients by its input, parameters and condition.

    Bijection by bijection: what a coupling's nets read is then the same in its inverse as in its
    gradient, to the bit, and XLA computes the nets once.
    """

    def apply(i: int, direction: str, params: Any, x: Array, cond: Any) -> tuple[Array, Array]:
        def method(step: Step, x: Array, cond: Any) -> tuple[Array, Array]:
            return getattr(step.bijections()[i], direction)(x, cond)

        return step.apply({"params": params}, x, cond, method=method)

    dparams, dcond = jax.tree.map(jnp.zeros_like, (params, cond))
    order = range(4 if step.conditional else 2)
    for i in reversed(order) if direction == "forward" else order:
        x = apply(i, BACK[direction], params, y, cond)[0]
        _, vjp = jax.vjp(functools.partial(apply, i, direction), params, x, cond)
        *more, dcond_i = vjp((dy, dlogdet))
        dparams, dcond = _add(dparams, more[0]), _add(dcond, dcond_i)
        y, dy = x, more[1]
    return y, dy, dparams, dcond


def _projection(step: Step, kernel: Array | None, features: Array | None) -> Array | None:
    return None if kernel is None else project(features, kernel, step.config)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
