"""What restoring a picture takes, and how to make it fit."""

import dataclasses
import math
import re
from typing import Literal

import jax

from zmar_jax.config import ModelConfig
from zmar_jax.models import param_shapes
from zmar_jax.runtime import compilation
from zmar_jax.runtime.memory import (
    GIB,
    RESERVE,
    MemoryLimitError,
    accelerator_stats,
    free,
    on_cpu,
)
from zmar_jax.tiling.rows import LEAST_ROWS
from zmar_jax.tiling.shares import Shares, most_shares

Stripes = Literal["auto", "none"]
"""Whether a picture may be restored in stripes: as is fastest, or never."""
STRIPES = (None, compilation.ACCELERATOR_STRIPE_BYTES, compilation.STRIPE_BYTES)
"""Sizes of stripes on an accelerator, from the fastest to the smallest."""
PROGRAM = 0.75 * GIB
"""What Python, JAX and the compiled programs take on the host."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a picture is restored: over how many devices, and in stripes of how many bytes if any."""

    stripe_bytes: int | None
    devices: int
    need: int
    """Estimated bytes of each device."""


def parse_bytes(text: str) -> int:
    """`16GiB`, `800MB` or a number of bytes; ValueError where it is none of these."""
    units = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    units |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    match = re.fullmatch(r"(\d+\.?\d*) ?([A-Za-z]*)", text)
    size = float(match[1]) * units.get(match[2], 0) if match else 0
    if not 1 <= size < math.inf:
        raise ValueError(f"memory must be an amount of memory, as 16GiB or 800MB, got {text!r}")
    return int(size)


def choose(
    config: ModelConfig,
    height: int,
    width: int,
    memory: int | None,
    devices: int = 1,
    stripes: Stripes = "auto",
) -> Plan:
    """The fastest plan for a picture of this size (multiples of the stride) that fits.

    Args:
      memory: bytes of each device; None is `available`.
      devices: over how many to split, at most: small pictures take fewer.
      stripes: `none` works on all rows at once, on CPUs, too, where that is slower.

    Raises:
      MemoryLimitError: none fits; says what would be needed, and what to do.
    """
    devices = min(devices, most_shares(height, config.stride))
    limit = limit_of(memory, devices)
    sizes = (compilation.STRIPE_BYTES,) if on_cpu() else STRIPES
    sizes = (None,) if stripes == "none" else sizes
    plans = [Plan(s, devices, need(config, height, width, s, devices)) for s in sizes]
    for plan in plans:
        if plan.need <= limit:
            return plan
    least = min(plan.need for plan in plans)
    raise MemoryLimitError(
        f"{needs(height, width, least, limit)}; make it smaller, or `restore` it with more "
        f"--memory or --devices{', or --stripes auto' if stripes == 'none' else ''}"
    )


def needs(height: int, width: int, need: int, limit: int) -> str:
    """The beginning of what is said of a picture that does not fit."""
    return (
        f"{width}x{height} pixels (width x height) need {need / GIB:.1f} GiB of memory, and "
        f"{limit / GIB:.1f} GiB are allowed"
    )


def need(
    config: ModelConfig,
    height: int,
    width: int,
    stripe_bytes: int | None,
    devices: int = 1,
    batch: int = 1,
    likelihood: bool = False,
) -> int:
    """Estimated bytes of each device for weights, picture, conditions and XLA's scratch memory.

    Counted in numbers per pixel that live at once; the tests hold it against XLA's own count.

    Args:
      devices: over how many the rows of a picture are split.
      batch: pictures that a device works on at once.
      likelihood: whether the flow also runs forward, which it does on all rows at once.
    """
    rows = batch * (Shares("", devices, height, config.stride).rows if devices > 1 else height)
    dim, wide = config.dim, 2 * config.hidden(2 * config.dim)
    channels = config.condition_channels
    # of the conditions' features there are 4 dim at half the size
    mine, coarser = 4 * rows * width, sum(4.0**-level for level in range(2, config.levels + 1))
    conditions = 4 * dim / 4 + channels * coarser
    # the widest layer, of the decoder at full resolution, before and after its depthwise taps
    layer = mine * 2 * wide
    if stripe_bytes is None:
        encode = layer + 6 * mine
    else:
        # the skip connection meets what was upsampled, or stripes of that layer beside its input
        stripe = 4.4 * batch * max(stripe_bytes, LEAST_ROWS * 4 * width * wide)
        encode = max(mine * (4.2 * dim + 6), mine * 3 * dim + min(stripe, layer))
    flow = 0.0  # in stripes hardly more than that, as counted up to 1 GiB at 12 megapixels
    if likelihood or stripe_bytes is None:
        # the projections for all steps, as they are computed and step by step
        flow = mine * (config.flow_steps * config.flow_hidden + 3 * dim + 9)
    if likelihood:  # the truth, its noise and the latent
        flow += 9 * mine
    both = max(encode, flow) + mine * conditions + _weights(config)
    # the picture, its mask and the latent, of which each device has all
    shared = 8 * 4 * height * width if devices > 1 else 0
    return int(both + shared + (PROGRAM if on_cpu() else 0))


def limit_of(memory: int | None, devices: int) -> int:
    """Bytes that each of so many devices may take; `memory` where that is given."""
    return available() // (devices if on_cpu() else 1) if memory is None else memory


def available() -> int:
    """Bytes that may be used on the first device, or on this host where that is a CPU."""
    if stats := accelerator_stats():
        return int((1 - RESERVE) * stats["bytes_limit"])
    return int(free() + PROGRAM)  # which is taken already


def _weights(config: ModelConfig) -> int:
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))
