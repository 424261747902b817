"""Timings of restoring on the machine at hand."""

import dataclasses
import os
import time
from typing import Any

import jax
import numpy as np

from zmar_jax import torch_port
from zmar_jax.benchmark.cost import restore_multiply_adds
from zmar_jax.benchmark.weights import random_state_dict
from zmar_jax.config import ModelConfig
from zmar_jax.restore.restorer import Restorer
from zmar_jax.runtime.memory import peak_memory
from zmar_jax.runtime.stop import stop_if_asked


@dataclasses.dataclass(frozen=True)
class Timing:
    """One compiled program: seconds of the fastest run, seconds to compile, what it takes.

    `temporaries` is XLA's own count of scratch memory, bytes; `multiply_adds` of one run.
    """

    name: str
    seconds: float
    compile_seconds: float
    multiply_adds: int
    temporaries: int


@dataclasses.dataclass(frozen=True)
class RestoreBenchmark:
    """`benchmark_restore`'s result; `peak_memory` is the process's, bytes."""

    size: tuple[int, int]
    parts: tuple[Timing, ...]
    peak_memory: int
    device: str

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def benchmark_restore(
    restorer: Restorer, height: int, width: int, repeats: int = 3
) -> RestoreBenchmark:
    """Times encoder and flow for one image, batch 1.

    Height and width are padded to multiples of the stride, as restoring does.

    Raises:
      MemoryLimitError: such a picture does not fit into memory.
    """
    height, width = restorer.config.padded(height, width)
    programs = restorer.programs(height, width)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (1, height, width, 3), np.uint8)
    z = np.zeros((1, *restorer.config.latent_shape(height, width)), np.float32)
    encode_cost, decode_cost = restore_multiply_adds(restorer.config, height, width)
    variables = restorer.variables
    encoder, features = _time("encoder", programs.encode, encode_cost, repeats, variables, image)
    flow, _ = _time("flow", programs.decode, decode_cost, repeats, variables, z, features)
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores), jax {jax.__version__}"
    return RestoreBenchmark((height, width), (encoder, flow), peak_memory(), device)


def _time(name: str, fn: Any, cost: int, repeats: int, *args: Any) -> tuple[Timing, Any]:
    start = time.perf_counter()
    compiled = fn.lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    fastest, out = float("inf"), None
    for _ in range(repeats):
        stop_if_asked()
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*args))
        fastest = min(fastest, time.perf_counter() - start)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Timing(name, fastest, compile_seconds, cost, temporaries), out


def random_restorer(config: ModelConfig) -> Restorer:
    """With weights of sane sizes; drawing the model's own compiles for a minute."""
    return Restorer(config, torch_port.to_params(random_state_dict(config, 0), config))
