"""Time and scratch memory of the flow's gradient, by steps of a level and by what is recomputed.

$ python scripts/flow_memory.py 160 12 48
"""

import functools
import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import Positional

from zmar_jax.config import ModelConfig, Remat
from zmar_jax.models.snflow import SNFlow
from zmar_jax.runtime import compilation


def measure(size: int, steps: int, remat: Remat) -> str:
    config = ModelConfig(flow_steps=steps)
    flow, width = SNFlow(config, remat), config.condition_channels
    x = jnp.full((1, size, size, 3), 0.5)
    cond = {
        f"fea_up{i}": jnp.ones((1, size // s, size // s, width)) for i, s in enumerate((8, 4, 2))
    }
    init = jax.eval_shape(
        functools.partial(flow.init, method="forward"), jax.random.key(0), x, cond
    )
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(init)))
    draw = [
        0.05 * jax.random.normal(k, a.shape)
        for k, a in zip(keys, jax.tree.leaves(init), strict=True)
    ]
    params = jax.tree.unflatten(jax.tree.structure(init), draw)

    def loss(params: Any, cond: Any) -> jax.Array:
        out: Any = flow.apply(params, x, cond, method="forward")
        return jnp.square(out[0]).sum() - out[1].sum()

    compiled = compilation.jit(jax.grad(loss, (0, 1))).lower(params, cond).compile()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, cond))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return f"| {steps} | {remat} | {min(seconds):.1f} s | {memory:.0f} MiB |"


def main(size: Positional[int], steps: Positional[tuple[int, ...]], /) -> None:
    """Prints the rows of a table.

    Args:
      size: Height and width of the pictures, a multiple of 8.
      steps: Steps of a level, one or more numbers.
    """
    for count in steps:
        for remat in get_args(Remat):
            print(measure(size, count, remat), flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
