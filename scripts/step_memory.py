"""Scratch memory of the whole training step by crop and batch, compiled and not run.

XLA's own count for one device, in GiB, of the published model, for each `train.remat`.

$ python scripts/step_memory.py 96x1 160x1 160x2 160x1x48

A size is CROPxBATCH, or CROPxBATCHxK with another number of flow steps.
"""

from typing import get_args

import jax
import numpy as np
import tyro
from tyro.conf import Positional

from zmar_jax.config import Config, DataConfig, ModelConfig, Remat, TrainConfig
from zmar_jax.runtime import sharding
from zmar_jax.train import compile_steps
from zmar_jax.train.state import abstract_state


def temporaries(crop: int, batch: int, flow_steps: int, remat: Remat) -> int:
    """Bytes."""
    config = Config(
        ModelConfig(flow_steps=flow_steps),
        DataConfig(crop=crop, batch_size=batch),
        TrainConfig(remat=remat),
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = abstract_state(config, mesh)
    pictures = jax.ShapeDtypeStruct((batch, crop, crop, 3), np.uint8)
    rng = jax.eval_shape(jax.random.key, 0)
    step = compile_steps(state, mesh)[1].compile(state, {"low": pictures, "gt": pictures}, rng)
    return step.memory_analysis().temp_size_in_bytes


def main(sizes: Positional[tuple[str, ...]], /) -> None:
    """Prints a table.

    Args:
      sizes: CROPxBATCH or CROPxBATCHxK, one or more.
    """
    print(f"| crop | batch | K | {' | '.join(get_args(Remat))} |\n|---|---|---|---|---|---|")
    for size in sizes:
        crop, batch, *deeper = map(int, size.split("x"))
        steps = deeper[0] if deeper else ModelConfig().flow_steps
        found = (temporaries(crop, batch, steps, remat) for remat in get_args(Remat))
        cells = " | ".join(f"{bytes_ / 2**30:.2f}" for bytes_ in found)
        print(f"| {crop} | {batch} | {steps} | {cells} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
