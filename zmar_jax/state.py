"""All that training changes, as one tree."""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from zmar_jax import compilation, sharding
from zmar_jax.config import Config, ModelConfig
from zmar_jax.models import ZmarSNFlow, param_shapes
from zmar_jax.optimizer import optimizer

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
        return ZmarSNFlow(self.config.model, self.stripe_bytes, self.config.train.remat)


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
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    create = functools.partial(create_state, config, platform=sharding.platform(mesh))
    return sharding.jit(create, mesh, out_shardings=shardings)(rng)


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


def init_params(config: ModelConfig, rng: Array) -> Any:
    """Random weights, distributed as the modules' own initialisers have it (SPEC section 4).

    `model.init` draws leaf by leaf, and compiling its 200 generators takes 40 s; here all uniform
    and all normal numbers are one draw each.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(param_shapes(config))
    leaves = {path: leaf.shape for path, leaf in flat.items()}
    kinds = {path: _kind(path) for path in leaves}
    keys = dict(zip(("uniform", "normal", "orthogonal"), jax.random.split(rng, 3), strict=True))

    def chosen(kind: str) -> dict[tuple[str, ...], tuple[int, ...]]:
        return {path: leaves[path] for path in sorted(leaves) if kinds[path] == kind}

    drawn = {path: jnp.zeros(shape) for path, shape in chosen("zeros").items()}
    drawn |= {path: jnp.ones(shape) for path, shape in chosen("ones").items()}
    for path, value in _cut(jax.random.uniform, keys["uniform"], chosen("uniform")).items():
        drawn[path] = (2 * value - 1) / math.sqrt(_fan_in(path, value.shape))
    for path, value in _cut(jax.random.normal, keys["normal"], chosen("normal")).items():
        drawn[path] = 0.05 * value
    orthogonal = chosen("orthogonal")
    for key, (path, (steps, *shape)) in zip(
        jax.random.split(keys["orthogonal"], len(orthogonal)), orthogonal.items(), strict=True
    ):
        draw = functools.partial(jax.nn.initializers.orthogonal(), shape=tuple(shape))
        drawn[path] = jax.lax.map(draw, jax.random.split(key, steps))
    return unflatten_dict({path: drawn[path] for path in leaves})


def _kind(path: tuple[str, ...]) -> str:
    """The distribution of a leaf's initial values."""
    if path[0] == "encoder":
        named = {"scale": "ones", "temperature": "ones", "bias": "zeros"}
        return named.get(path[-1], "uniform")
    if path[-2:] == ("invconv", "weight"):
        return "orthogonal"
    hidden = path[-1] == "conv1" or path[-2:] in (("z1", "kernel"), ("condition", "kernel"))
    return "normal" if hidden else "zeros"


def _fan_in(path: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """Inputs of one output of an encoder's kernel; a stage's are stacked along the first axis."""
    return math.prod(shape[1:-1] if "blocks" in path else shape[:-1])


def _cut(draw: Any, key: Array, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> dict[Any, Array]:
    """One draw cut into arrays of these shapes."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = jnp.split(draw(key, (sum(sizes),)), ends)
    return {
        path: part.reshape(shape) for (path, shape), part in zip(shapes.items(), parts, strict=True)
    }
