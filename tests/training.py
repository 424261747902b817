"""A model small enough to train in tests, and runs of it."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from zmar_jax.config import Config, ModelConfig, TrainConfig
from zmar_jax.runtime import compilation, sharding
from zmar_jax.train import compile_steps, init_step, loop, train_step
from zmar_jax.train.state import TrainState, create_sharded_state, create_state, state_of

MODEL = ModelConfig(
    dim=2,
    blocks=(1, 1, 1),  # two levels are enough, and compile faster than three
    refinement_blocks=1,
    heads=(1, 1, 1),
    flow_additional_steps=1,
    flow_steps=1,
    flow_hidden=4,
)
RECIPE = TrainConfig(steps=100, learning_rate=1e-3, warmup_steps=2, ema=0.15)
KEY = jax.random.key(7)


def config(**train: Any) -> Config:
    return Config(model=MODEL, train=TrainConfig(**{**vars(RECIPE), **train}))


def batch(step: int, size: int = 8) -> dict[str, np.ndarray]:
    """Dark uint8 and clean float images, and names; another batch at each step."""
    rng = np.random.default_rng(step)
    gt = rng.random((size, 1, 1, 3)) * rng.random((size, 16, 16, 3))
    low = np.uint8(60 * gt * (rng.random((size, 16, 16, 1)) > 0.2))
    return {"low": low, "gt": gt.astype(np.float32), "id": np.array([f"{n}" for n in range(size)])}


@functools.cache
def created() -> TrainState:
    return compilation.jit(create_state, static_argnums=0)(config(), KEY)


def params() -> Any:
    return created().params


@functools.cache
def programs() -> tuple[Any, Any]:
    """`init_step` and `train_step`, compiled; the states that they are given stay usable."""
    return compilation.jit(init_step), compilation.jit(train_step)


def arrays(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in batch.items() if key != "id"}


@functools.cache
def initialised(cfg: Config) -> TrainState:
    """A state after the first step, on one device."""
    return programs()[0](state_of(cfg, params()), arrays(batch(0)), KEY)


@functools.cache
def trained(cfg: Config, steps: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after `steps` steps that follow the first, and their metrics, on one device."""
    state, metrics = initialised(cfg), []
    for step in range(1, 1 + steps):
        state, shown = programs()[1](state, arrays(batch(step)), KEY)
        metrics.append({key: float(value) for key, value in shown.items()})
    return state, metrics


def trained_on(mesh: Any, cfg: Config, steps: int) -> tuple[Any, TrainState, list[float]]:
    """As `trained`, on a mesh: parameters after the first step, the last state, and the losses.

    Each process reads its own share of the batch.
    """
    state = create_sharded_state(cfg, KEY, mesh)
    init, step = compile_steps(state, mesh)
    state = init(state, sharding.shard_batch(local(batch(0)), mesh), KEY)
    # whole also where other processes hold parts of it
    whole = sharding.jit(lambda x: x, mesh, out_shardings=NamedSharding(mesh, sharding.REPLICATED))
    first, losses = jax.tree.map(np.asarray, whole(state.params)), []
    for i in range(1, 1 + steps):
        state, metrics = step(state, sharding.shard_batch(local(batch(i)), mesh), KEY)
        losses.append(float(metrics["loss"]))
    return first, state, losses


def local(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count, index = jax.process_count(), jax.process_index()
    return {key: np.array_split(value, count)[index] for key, value in batch.items()}


def apart(found: Any, expected: Any) -> float:
    """The largest difference of two trees' leaves, each relative to its leaf's largest value."""
    errors = jax.tree.map(
        lambda f, e: np.max(np.abs(np.asarray(f) - e)) / (np.max(np.abs(e)) + 1e-30),
        found,
        jax.tree.map(np.asarray, expected),
    )
    return max(jax.tree.leaves(errors))


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs of the same recipe share their programs, as each start traces them for seconds."""
    steps: dict[Any, Any] = {}
    compiled: dict[Any, Any] = {}
    compile = sharding.Program.compile

    def compile_once(program: sharding.Program, *args: Any, **options: Any) -> Any:
        key = program, *(leaf.shape for leaf in jax.tree.leaves(args))
        if key not in compiled:
            compiled[key] = compile(program, *args, **options)
        return compiled[key]

    def steps_once(state: TrainState, mesh: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)
        key = structure, tuple((leaf.shape, leaf.sharding) for leaf in leaves), mesh
        if key not in steps:
            steps[key] = compile_steps(state, mesh)
        return steps[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_steps", steps_once)
        patch.setattr(loop, "Validator", functools.cache(loop.Validator))
        patch.setattr(sharding.Program, "compile", compile_once)
        yield
