"""The optimizer and its learning rate (model.md section 7)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zmar_jax.config import TrainConfig

Array = jax.Array


def learning_rate(config: TrainConfig) -> Callable[[Any], Array]:
    """The learning rate of the step that begins when `step` steps are done.

    That step is the release's iteration `step + 1`: `TrainState.step` counts what the release
    calls iterations, of which the first initialises and does not train. Warm-up and schedule are
    factors: a milestone within the warm-up acts there, too.
    """
    milestones = [round(share * config.steps) for share in config.milestones]
    decays = config.decay ** np.arange(len(milestones) + 1)
    warmup = config.warmup_steps
    # the release writes lr * i / warmup while i < warmup, and then nothing: its last value stays
    last = warmup - 1 if config.release_warmup else warmup
    # as if one step followed the last: a step with rate 0 would change nothing
    duration = max(config.steps + 1 - warmup, 1)

    def schedule(step: Any) -> Array:
        iteration = jnp.asarray(step) + 1
        rate = jnp.asarray(config.learning_rate)
        if last > 0:
            rate = config.learning_rate / warmup * jnp.minimum(iteration, last)
        if config.schedule == "multistep":
            passed = sum(((iteration >= m).astype(int) for m in milestones), 0 * iteration)
            rate = rate * jnp.asarray(decays)[passed]
        elif config.schedule == "cosine":
            share = jnp.clip((iteration - warmup) / duration, 0, 1)
            rate = rate * 0.5 * (1 + jnp.cos(math.pi * share))
        return rate

    return schedule


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradients -> updates that the caller multiplies by minus the learning rate.

    Clipping by the global norm, then Adam with its L2 inside the gradient, or AdamW with its
    decay beside it; `weight_decay_encoder` and `weight_decay_flow` apply to those two subtrees.
    """
    rates = {"encoder": config.weight_decay_encoder, "flow": config.weight_decay_flow}
    decay = [optax.add_decayed_weights(rates[p], {q: p == q for q in rates}) for p in rates]
    adam = scale_by_adam(*config.betas)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*clip, *((*decay, adam) if config.optimizer == "adam" else (adam, *decay)))


def scale_by_adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, but with bias corrections that are right to the last digits.

    In float32, optax's 1 - 0.999**t is off by 1.5e-5 at the first steps, which a flow's loss shows
    at the tenth (model.md section 10).
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        correct1, correct2 = _bias_correction(b1, count), _bias_correction(b2, count)
        updates = jax.tree.map(lambda m, v: m / correct1 / (jnp.sqrt(v / correct2) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def _bias_correction(beta: float, count: Any) -> Array:
    """1 - beta**count, the logarithm in float64."""
    return -jnp.expm1(count * (math.log(beta) if beta else -math.inf))
