"""All that training changes, as one tree."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from zmar_jax.config import Config
from zmar_jax.models import ZmarSNFlow, init_params
from zmar_jax.runtime import compilation, sharding
from zmar_jax.train.optimizer import optimizer

Array = jax.Array


class TrainState(flax.struct.PyTreeNode):
    """What a step reads and returns; a checkpoint of its leaves resumes the run bit for bit.

    Random numbers, learning rate and stage of a step depend on `step` and on the run's key alone.
    """

    step: Array
    """Batches consumed, int32: the release's iterations, of which the first only initialises.
    A skipped step counts: its batch and its noise are not seen again."""
    params: Any
    ema: Any
    """Moving average of `params`, or None (`train.ema`)."""
    opt_state: Any
    bad_steps: Array
    """Steps in a row, up to the last, whose loss or gradient was not finite, int32."""
    bad_steps_total: Array
    config: Config = flax.struct.field(pytree_node=False)
    """Static: the model, and how it is trained."""
    stripe_bytes: int | None = flax.struct.field(pytree_node=False)
    """Static: of the encoder's gradients, on the platform that the state was made for."""

    @property
    def model(self) -> ZmarSNFlow:
        train = self.config.train
        return ZmarSNFlow(self.config.model, self.stripe_bytes, train.remat, kernels=train.kernels)


def create_state(config: Config, rng: Array, platform: str | None = None) -> TrainState:
    """A state before its first step. Can be jitted, with `config` and `platform` static."""
    return state_of(config, init_params(config.model, rng), platform)


def state_of(config: Config, params: Any, platform: str | None = None) -> TrainState:
    """A state before its first step, from given weights; for the default backend, or another."""
    remat = config.train.remat != "none"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=None if config.train.ema is None else jax.tree.map(jnp.copy, params),
        opt_state=optimizer(config.train).init(params),
        bad_steps=jnp.zeros((), jnp.int32),
        bad_steps_total=jnp.zeros((), jnp.int32),
        config=config,
        stripe_bytes=compilation.stripe_bytes(platform, training=True) if remat else None,
    )


def create_sharded_state(config: Config, rng: Array, mesh: Mesh) -> TrainState:
    """`create_state`, made where it will lie: no device ever holds more than its share."""
    return _creation(config, mesh)(rng)


@functools.cache  # tracing a model takes seconds
def _creation(config: Config, mesh: Mesh) -> sharding.Program:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    create = functools.partial(create_state, config, platform=sharding.platform(mesh))
    return sharding.jit(create, mesh, out_shardings=shardings)


@functools.cache
def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of `create_sharded_state`'s; computes nothing."""
    create = functools.partial(create_state, config, platform=sharding.platform(mesh))
    state = jax.eval_shape(create, jax.random.key(0))
    shardings = sharding.tree_shardings(state, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )
