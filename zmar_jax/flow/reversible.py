"""Gradients of flow steps from what comes out of them: memory that does not grow with the steps.

Autodiff keeps what each step has read. A bijection need not: the way back, from output to input,
recomputes it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import ops
from zmar_jax.flow.condition import Projection, project
from zmar_jax.flow.health import HEALTH

Array = jax.Array
Outputs = tuple[Array, Array, Any]

BACK = {"forward": "inverse", "inverse": "forward"}


def _run(step: Any, direction: str, params: Any, x: Array, cond: Projection | None) -> Outputs:
    """The steps in this direction, `forward` or `inverse`.

    Args:
      step: a `FlowStep` without parent and variables; params: the steps', stacked.
      x: [B, H, W, C]; cond: the level's, None if unconditional.

    Returns:
      y [B, H, W, C], logdet [B], and HEALTH of all steps, stacked.
    """

    def body(x: Array, at: tuple[Array, Any]) -> tuple[Array, Any]:
        i, params = at
        (y, logdet), kept = step.apply(
            {"params": params}, x, _share(step, i, cond), method=direction, mutable=[HEALTH]
        )
        return y, (logdet, kept.get(HEALTH, {}))

    y, (logdets, recorded) = lax.scan(body, x, _numbered(params), reverse=direction == "inverse")
    return y, logdets.sum(0), recorded


def _run_fwd(step: Any, direction: str, params: Any, x: Array, cond: Projection | None) -> Any:
    outputs = _run(step, direction, params, x, cond)
    return outputs, (params, outputs[0], cond)


def _run_bwd(step: Any, direction: str, residuals: Any, cotangents: Outputs) -> Any:
    params, y, cond = residuals
    dy, dlogdet, _ = cotangents

    def body(carry: tuple[Array, Array, Any], at: tuple[Array, Any]) -> tuple[Any, Any]:
        (y, dy, total), (i, params) = carry, at
        share = _share(step, i, cond)
        y, dy, dparams, dshare = _step_bwd(step, direction, params, share, y, dy, dlogdet)
        return (y, dy, _add_share(step, i, cond, total, dshare)), dparams

    # summed in float32 whatever the policy
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, ops.wide(a.dtype)), cond)
    back = direction == "forward"
    (_, dx, dcond), dparams = lax.scan(body, (y, dy, zeros), _numbered(params), reverse=back)
    return dparams, dx, jax.tree.map(lambda d, a: d.astype(a.dtype), dcond, cond)


run = jax.custom_vjp(_run, nondiff_argnums=(0, 1))
"""As `_run`, with gradients from the outputs; it has no forward mode and no second derivative."""
run.defvjp(_run_fwd, _run_bwd)


def _numbered(params: Any) -> tuple[Array, Any]:
    return jnp.arange(len(jax.tree.leaves(params)[0])), params


def _share(step: Any, i: Array, cond: Projection | None) -> Array | None:
    """The condition as step i reads it; made there, as all steps' would grow with their number."""
    return None if cond is None else project(cond.step(i), step.config.policy)


def _add_share(
    step: Any, i: Array, cond: Projection | None, total: Projection | None, dshare: Array | None
) -> Projection | None:
    """`total` with the gradient by the condition that came through step i."""
    if cond is None or total is None:
        return None
    pull = jax.vjp(lambda mine: project(mine, step.config.policy), cond.step(i))[1]
    (mine,) = pull(dshare)
    kernel = mine.kernel.astype(total.kernel.dtype)
    return Projection(
        total.features + mine.features.astype(total.features.dtype),
        lax.dynamic_update_index_in_dim(total.kernel, kernel, i, 3),
    )


def _step_bwd(
    step: Any, direction: str, params: Any, cond: Any, y: Array, dy: Array, dlogdet: Array
) -> tuple[Array, Array, Any, Any]:
    """One step's input, and the gradients by its input, parameters and condition.

    Bijection by bijection: what a coupling's nets read is then the same in its inverse as in its
    gradient, to the bit, and XLA computes the nets once.
    """

    def apply(i: int, direction: str, params: Any, x: Array, cond: Any) -> tuple[Array, Array]:
        def method(step: Any, x: Array, cond: Any) -> tuple[Array, Array]:
            return getattr(step.bijections()[i], direction)(x, cond)

        return step.apply({"params": params}, x, cond, method=method)

    dparams, dcond = jax.tree.map(jnp.zeros_like, (params, cond))
    order = range(len(step.bind({"params": params}).bijections()))
    for i in reversed(order) if direction == "forward" else order:
        x = apply(i, BACK[direction], params, y, cond)[0]
        _, vjp = jax.vjp(functools.partial(apply, i, direction), params, x, cond)
        more, dy, more_cond = vjp((dy, dlogdet))
        dparams, dcond, y = _add(dparams, more), _add(dcond, more_cond), x
    return y, dy, dparams, dcond


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
