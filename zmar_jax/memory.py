"""What restoring a picture takes, and how to make it fit."""

import contextlib
import dataclasses
import math
import os
import re
from pathlib import Path

import jax

from zmar_jax import compilation
from zmar_jax.config import ModelConfig
from zmar_jax.models import param_shapes
from zmar_jax.rows import LEAST_ROWS
from zmar_jax.shares import Shares, most_shares

GIB = 1 << 30
STRIPES = (None, compilation.ACCELERATOR_STRIPE_BYTES, compilation.STRIPE_BYTES)
"""Sizes of stripes on an accelerator, from the fastest to the smallest."""
RESERVE = 0.1
"""Share of the memory that is left to others where nobody says how much to use."""
PROGRAM = 0.75 * GIB
"""What Python, JAX and the compiled programs take on the host."""


class MemoryLimitError(ValueError):
    """A picture does not fit into memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a picture is restored: over how many devices, and in stripes of how many bytes if any."""

    stripe_bytes: int | None
    devices: int
    need: int
    """Estimated bytes of each device."""


def choose(
    config: ModelConfig, height: int, width: int, memory: int | None, devices: int = 1
) -> Plan:
    """The fastest plan for a picture of this size (multiples of 8) that fits.

    Args:
      memory: bytes of each device; None is `available`.
      devices: over how many to split, at most: small pictures take fewer.

    Raises:
      MemoryLimitError: none fits; says what would be needed, and what to do.
    """
    devices = min(devices, most_shares(height))
    limit = available() // (devices if _on_cpu() else 1) if memory is None else memory
    stripes = (compilation.STRIPE_BYTES,) if _on_cpu() else STRIPES
    plans = [Plan(s, devices, need(config, height, width, s, devices)) for s in stripes]
    for plan in plans:
        if plan.need <= limit:
            return plan
    least = min(plan.need for plan in plans)
    raise MemoryLimitError(
        f"{width}x{height} pixels (width x height) need {least / GIB:.1f} GiB of memory, and "
        f"{limit / GIB:.1f} GiB are allowed; make it smaller, or `restore` it with more --memory "
        "or --devices"
    )


def need(
    config: ModelConfig, height: int, width: int, stripe_bytes: int | None, devices: int = 1
) -> int:
    """Estimated bytes of each device for weights, picture, conditions and XLA's scratch memory.

    Counted in numbers per pixel that live at once; the tests hold it against XLA's own count.
    """
    rows = Shares("", devices, height).rows if devices > 1 else height
    dim, wide = config.dim, 2 * config.hidden(2 * config.dim)
    channels = config.condition_channels
    # of the conditions' features there are 4 dim at half the size
    mine, conditions = 4 * rows * width, 4 * dim / 4 + channels * (1 / 16 + 1 / 64)
    # the widest layer, of the decoder at full resolution, before and after its depthwise taps
    layer = mine * 2 * wide
    if stripe_bytes is None:
        encode = layer + 6 * mine
        # the projections for all steps, as they are computed and step by step
        decode = mine * (config.flow_steps * config.flow_hidden + 3 * dim + 9)
    else:
        # the skip connection meets what was upsampled, or stripes of that layer beside its input
        stripe = 4.4 * max(stripe_bytes, LEAST_ROWS * 4 * width * wide)
        encode = max(mine * (4.2 * dim + 6), mine * 3 * dim + min(stripe, layer))
        decode = 0  # hardly more than that, as counted up to stripes of 1 GiB at 12 megapixels
    both = max(encode, decode) + mine * conditions + _weights(config)
    # the picture, its mask and the latent, of which each device has all
    shared = 8 * 4 * height * width if devices > 1 else 0
    return int(both + shared + (PROGRAM if _on_cpu() else 0))


def available() -> int:
    """Bytes that may be used on the first device, or on this host where that is a CPU."""
    stats = None if _on_cpu() else jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int((1 - RESERVE) * stats["bytes_limit"])
    return int((1 - RESERVE) * _host_memory() + PROGRAM)  # which is taken already


def _weights(config: ModelConfig) -> int:
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _host_memory() -> float:
    """Free memory of this host, or of the container where that has less."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(free, _container_memory(Path("/sys/fs/cgroup")))


def _container_memory(cgroup: Path) -> float:
    """What a container's limit leaves, by version 2 of the kernel's control groups or version 1."""
    for folder, limit, used in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            # files that were read count as used until something else wants their room
            files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
            return most - taken + (int(files[1]) if files else 0)
    return math.inf
