"""Timings of the training step on the machine at hand."""

import dataclasses
import os
import time

import jax
import numpy as np

from zmar_jax.benchmark.cost import multiply_adds
from zmar_jax.config import Config
from zmar_jax.runtime import sharding
from zmar_jax.runtime.memory import peak_memory
from zmar_jax.runtime.stop import stop_if_asked
from zmar_jax.train import compile_steps, train_step
from zmar_jax.train.state import create_sharded_state
from zmar_jax.train.step import check_memory


@dataclasses.dataclass(frozen=True)
class TrainBenchmark:
    """The fastest of some steps, over all devices.

    `temporaries` is XLA's own count of scratch memory per device, `peak_memory` the process's (an
    accelerator's where there is one), bytes; `multiply_adds` of one step.
    """

    batch_size: int
    crop: int
    policy: str
    remat: str
    seconds: float
    images_per_second: float
    compile_seconds: float
    multiply_adds: int
    temporaries: int
    peak_memory: int
    device: str


def benchmark_train(config: Config, repeats: int = 3) -> TrainBenchmark:
    """Compiles and times `train_step` on random pictures, batch and crop as in `config.data`.

    Raises:
      ConfigError: a batch that the devices do not divide.
      MemoryLimitError: a step does not fit into memory.
    """
    mesh = sharding.make_mesh(config.train.fsdp)
    size, crop = config.data.batch_size, config.data.crop
    sharding.check_batch(size, config.train.accumulate, mesh)
    state = create_sharded_state(config, jax.random.key(0), mesh)
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, high, (size, crop, crop, 3), np.uint8) for high in (60, 256))
    batch = sharding.shard_batch(dict(zip(("low", "gt"), pictures, strict=True)), mesh)
    key = jax.random.key(1)
    cost = multiply_adds(train_step, state, batch, key)
    start = time.perf_counter()
    compiled = compile_steps(state, mesh)[1].compile(state, batch, key)
    compile_seconds = time.perf_counter() - start
    check_memory(compiled, mesh)
    fastest = float("inf")
    for _ in range(repeats):
        stop_if_asked()
        start = time.perf_counter()
        state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        fastest = min(fastest, time.perf_counter() - start)
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}"
    return TrainBenchmark(
        batch_size=size,
        crop=crop,
        policy=config.model.policy,
        remat=config.train.remat,
        seconds=fastest,
        images_per_second=size / fastest,
        compile_seconds=compile_seconds,
        multiply_adds=cost,
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
        peak_memory=peak_memory(),
        device=f"{devices} ({os.cpu_count()} cores), jax {jax.__version__}",
    )
