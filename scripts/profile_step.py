"""Where the time of a train step goes, kernel by kernel, as the device itself tells.

$ python scripts/profile_step.py data.batch_size=16 model.policy=bfloat16
$ python scripts/profile_step.py --config nano --top 5

Compiles the step, runs it once, traces the next run, and prints one JSON object: seconds of the
step, seconds that the device was busy, the share of the chip's peak (MFU), and the kernels that
took the most.
"""

import collections
import json
import re
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.profiler import ProfileData, ProfileOptions
from tyro.conf import Positional

from zmar_jax.benchmark.chips import CHIPS, Chip
from zmar_jax.benchmark.cost import matrix_multiply_adds
from zmar_jax.config import Config, load_config, override
from zmar_jax.runtime import compilation, sharding
from zmar_jax.train import compile_steps, train_step
from zmar_jax.train.state import create_sharded_state


def profile(config: Config, top: int) -> dict[str, Any]:
    """As `main` prints it."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = create_sharded_state(config, jax.random.key(0), mesh)
    size, crop = config.data.batch_size, config.data.crop
    rng, key = np.random.default_rng(0), jax.random.key(1)
    pictures = (rng.integers(0, high, (size, crop, crop, 3), np.uint8) for high in (60, 256))
    batch = sharding.shard_batch(dict(zip(("low", "gt"), pictures, strict=True)), mesh)
    device = jax.devices()[0]
    found: dict[str, Any] = {"what": "profile", "framework": "jax", "device": device.device_kind}
    found |= {"policy": config.model.policy, "shape": [size, crop, crop]}
    chip = chip_of(device.device_kind)
    if chip:
        cost = matrix_multiply_adds(train_step, state, batch, key, float32_cost=chip.float32_cost)
        found["peak_seconds"] = 2 * cost[1] / chip.flops
    step = compile_steps(state, mesh)[1].compile(state, batch, key)
    state = jax.block_until_ready(step(state, batch, key))[0]
    with tempfile.TemporaryDirectory() as folder:
        with trace(Path(folder)):
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch, key))
            found["seconds"] = time.perf_counter() - start
        kernels = kernel_seconds(Path(folder))
    if chip:
        found["mfu"] = found["peak_seconds"] / found["seconds"]
    most = sorted(kernels.items(), key=lambda item: -item[1][1])
    found["kernel_launches"] = sum(count for count, _ in kernels.values())
    found["busy_seconds"] = sum(seconds for _, seconds in kernels.values())
    found["kernels"] = [
        {"name": name, "count": count, "seconds": seconds} for name, (count, seconds) in most[:top]
    ]
    return found


def chip_of(device_kind: str) -> Chip | None:
    """What is known of a GPU by the name that its driver gives it; None if that is nothing."""
    words = device_kind.lower().replace("-", " ").split()
    return next((chip for name, chip in CHIPS.items() if name in words), None)


def trace(folder: Path) -> AbstractContextManager[None]:
    """Traces what devices do, and of Python nothing, which would slow the step down."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    return jax.profiler.trace(str(folder), profiler_options=options)


def kernel_seconds(folder: Path) -> dict[str, tuple[int, float]]:
    """Name: how many, and their seconds in all, of what a GPU ran, or a CPU's threads for XLA."""
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(file)).planes)
    gpus = [line for p in planes if p.name.startswith("/device:GPU") for line in p.lines]
    lines = [line for line in gpus if not line.name.startswith(("XLA", "Steps", "Framework"))]
    if not gpus:
        threads = [line for p in planes if p.name.startswith("/host:CPU") for line in p.lines]
        lines = [line for line in threads if "XLA" in line.name]
    found: dict[str, tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for event in (event for line in lines for event in line.events):
        # a CPU's threads also tell of the pool that they are in
        if gpus or re.fullmatch(r"[a-z_][\w.\-]*", event.name):
            count, seconds = found[event.name]
            found[event.name] = (count + 1, seconds + 1e-9 * event.duration_ns)
    return dict(found)


def main(
    settings: Positional[tuple[str, ...]] = (), /, *, config: Path | None = None, top: int = 20
) -> None:
    """Prints one JSON object.

    Args:
      settings: Changes to the configuration, section.key=value.
      config: YAML file of a run, or its name; without it, the published model and recipe.
      top: How many kernels to name.
    """
    compilation.enable_cache()
    run = override(load_config(config) if config else Config(), settings)
    print(json.dumps(profile(run, top)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
