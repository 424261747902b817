"""Training: one step, as a pure function."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zmar_jax import ops
from zmar_jax.config import Config
from zmar_jax.flow import HEALTH, init_actnorm
from zmar_jax.models import ZmarSNFlow, losses
from zmar_jax.runtime import sharding
from zmar_jax.runtime.memory import check_program
from zmar_jax.train.optimizer import learning_rate, optimizer
from zmar_jax.train.state import TrainState
from zmar_jax.train.trainable import changed, frozen_stopped

Array = jax.Array

Batch = Mapping[str, Any]
"""`low` and `gt` [B, H, W, 3], unsigned integers or float in [0, 1]; `noise`, u - 0.5 of the same
shape, replaces the noise that a step draws; other entries are not read."""
Metrics = dict[str, Array]


def init_step(state: TrainState, batch: Batch, rng: Array) -> TrainState:
    """A run's first step, which sets every actnorm from the global batch and does not train.

    Actnorms with a non-zero bias, as in trained weights, stay as they are, and so does what
    `train.trainable` leaves out. A batch that makes
    them NaN counts as a bad step and leaves `step` at 0: try the next.
    """
    low, gt, noise = _inputs(state, batch, rng)
    params = sharding.constrain(state.params, sharding.REPLICATED)
    params = init_actnorm(state.model, params, gt, *ops.network_input(low), noise)
    params = sharding.constrain(params, sharding.REPLICATED)  # as of the gradients of a step
    params = changed(state.params, params, state.config.train.trainable)
    ok = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
    ema = state.ema if state.ema is None else params
    new = state.replace(params=params, ema=ema, step=state.step + 1)
    return _count(_choose(ok, new, state), ok)


def train_step(state: TrainState, batch: Batch, rng: Array) -> tuple[TrainState, Metrics]:
    """One step of the recipe in `state.config` (model.md sections 5 and 7).

    A loss or a gradient that is not finite changes nothing but the counters.

    Args:
      rng: the run's key, the same at every step; the step's noise is `fold_in(rng, state.step)`'s.

    Returns:
      The next state, and scalars of this step, float32, before its update: `loss`; `nll` in
      bits per pixel as the release counts them; `bits_per_dim`; `l1` where it has a weight;
      `grad_norm` before clipping; `learning_rate`; `skipped`, 1 where the step was not finite, and
      `bad_steps` and `bad_steps_total`, how many in a row and in all; and what shows a flow that
      collapses: `log_det_mean` and `log_det_min` of log|det W| over all invconvs, and `scale_min`,
      the smallest coupling scale in the batch.
    """
    cfg = state.config.train
    low, gt, noise = _inputs(state, batch, rng)
    grads, metrics = _gradients(state, (low, gt, noise))
    # else XLA splits the backward pass as the optimizer lies, by hundreds of small collectives
    grads = sharding.constrain(grads, sharding.REPLICATED)
    grad_norm = optax.tree.norm(grads)
    rate = learning_rate(cfg)(state.step)
    ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

    updates, opt_state = optimizer(cfg).update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    params = changed(state.params, params, cfg.trainable)
    ema = state.ema
    if cfg.ema is not None:
        decay = jnp.minimum(cfg.ema, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
    new = state.replace(params=params, ema=ema, opt_state=opt_state)
    new = _count(_choose(ok, new, state), ok).replace(step=state.step + 1)
    bits = losses.bits_per_dim(metrics["nll"], state.config.model.quantization)
    metrics |= {"bits_per_dim": bits, "grad_norm": grad_norm, "learning_rate": rate}
    metrics |= {"bad_steps": new.bad_steps, "bad_steps_total": new.bad_steps_total}
    return new, metrics | {"skipped": 1 - ok.astype(jnp.float32)}


def health(params: Any) -> Metrics:
    """`condition_max`, the worst condition number of the invconvs; singular values are not cheap.

    One matrix at a time: a batched decomposition was seen to hang on a CPU.
    """
    leaves = flatten_dict(params).items()
    weights = [leaf for path, leaf in leaves if path[-2:] == ("invconv", "weight")]
    return {
        "condition_max": jnp.stack([jax.lax.map(jnp.linalg.cond, w).max() for w in weights]).max()
    }


def compile_steps(state: TrainState, mesh: Mesh) -> tuple[sharding.Program, sharding.Program]:
    """`init_step` and `train_step` for states that lie as `state` does; both consume theirs."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    replicated = NamedSharding(mesh, sharding.REPLICATED)
    init = sharding.jit(init_step, mesh, donate_argnums=0, out_shardings=shardings)
    outputs = (shardings, replicated)
    return init, sharding.jit(train_step, mesh, donate_argnums=0, out_shardings=outputs)


def check_memory(compiled: Any, mesh: Mesh) -> None:
    """Raises MemoryLimitError where a compiled `train_step` needs more memory than is free."""
    advice = "lower data.batch_size or data.crop, or say train.remat=reversible"
    check_program(compiled, "a training step", advice, len(mesh.local_devices))


def _inputs(state: TrainState, batch: Batch, rng: Array) -> tuple[Array, Array, Array]:
    """low, gt and noise, split over the devices."""
    low, gt = ops.to_unit(batch["low"]), ops.to_unit(batch["gt"])
    noise = batch.get("noise")
    if noise is None:
        noise = jax.random.uniform(jax.random.fold_in(rng, state.step), gt.shape) - 0.5
    return sharding.constrain((low, gt, noise), sharding.BATCH)


def _gradients(state: TrainState, inputs: tuple[Array, ...]) -> tuple[Any, Metrics]:
    """Gradient and metrics of the mean loss, in `accumulate` parts one after the other."""
    parts, config, step = state.config.train.accumulate, state.config, state.step
    params = sharding.constrain(state.params, sharding.REPLICATED)
    gradient = jax.grad(
        lambda params, part: _loss(state.model, params, config, step, *part), has_aux=True
    )
    if parts == 1:
        return gradient(params, inputs)

    def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, Metrics]:
        grads, metrics = gradient(params, part)
        return jax.tree.map(jnp.add, total, grads), metrics

    # every parts-th example, not a run of them: each device keeps what it has
    cut = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in inputs]
    cut = sharding.constrain(tuple(cut), PartitionSpec(None, *sharding.BATCH))
    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), cut)
    worst = {key: value.min() for key, value in metrics.items() if key.endswith("_min")}
    means = {key: value.mean() for key, value in metrics.items()}
    return jax.tree.map(lambda g: g / parts, total), means | worst


def _loss(
    model: ZmarSNFlow,
    params: Any,
    config: Config,
    step: Array,
    low: Array,
    gt: Array,
    noise: Array,
) -> tuple[Array, Metrics]:
    """Loss and metrics of a batch; nll and L1 share one pass of the encoder."""
    cfg = config.train
    params = frozen_stopped(params, cfg.trainable)
    features = model.apply({"params": params}, *ops.network_input(low), method="features")
    likely = distant = (params, features)
    first: Any = None if cfg.flow_warmup_steps is None else step < cfg.flow_warmup_steps
    if first is not None:
        likely, distant = _gradient_if(first, likely), _gradient_if(~first, distant)
    nll, recorded = model.apply(
        {"params": likely[0]}, gt, likely[1], noise, method="conditional_nll", mutable=[HEALTH]
    )
    nll, l1 = nll.mean(), jnp.zeros(())
    if cfg.weight_l1:
        b, h, w, _ = gt.shape
        mode = jnp.zeros((b, *model.config.latent_shape(h, w)))
        restored, _ = model.apply({"params": distant[0]}, mode, distant[1], method="decode")
        l1 = losses.l1(gt, restored)
    loss: Any = nll + cfg.weight_l1 * l1
    if first is not None:
        loss = jnp.where(first, nll, cfg.weight_l1 * l1)
    shown = {"loss": loss, "nll": nll} | ({"l1": l1} if cfg.weight_l1 else {})
    return loss, shown | _collapse(recorded[HEALTH])


def _gradient_if(on: Array, tree: Any) -> Any:
    """The tree; where not `on`, no gradient passes, not even the NaN that 0 times infinity is."""
    return jax.lax.cond(on, lambda tree: tree, jax.lax.stop_gradient, tree)


def _collapse(recorded: Any) -> Metrics:
    """Indicators from what a forward pass recorded."""
    leaves: Any = flatten_dict(recorded).items()
    log_det, scale = (
        jnp.concatenate([leaf.ravel() for path, leaf in leaves if path[-1] == name])
        for name in ("logabsdet", "scale")
    )
    return {
        "log_det_mean": log_det.mean(),
        "log_det_min": log_det.min(),
        "scale_min": scale.min(),
    }


def _choose(ok: Array, new: TrainState, old: TrainState) -> TrainState:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _count(state: TrainState, ok: Array) -> TrainState:
    bad = 1 - ok.astype(jnp.int32)
    return state.replace(
        bad_steps=(state.bad_steps + 1) * bad, bad_steps_total=state.bad_steps_total + bad
    )
