"""TPU slices that are not there: what their chips can do, and their devices to compile for."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

from zmar_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's peaks, as Google publishes them (`SOURCES`).

    `flops` is of bfloat16 products, a second. `hbm` is in bytes, `hbm_bandwidth` in bytes a second.
    `ici` is what one link to another chip carries in one direction, bytes a second.
    `matrix_units` of `matrix_width`**2 cells make `flops`, from which the clock follows. A
    dimension of at least `wraps` chips is a ring. JAX sees `cores` devices.
    """

    name: str
    flops: float
    hbm: int
    hbm_bandwidth: float
    ici: float
    matrix_units: int
    matrix_width: int
    wraps: int
    cores: int = 1

    @property
    def clock(self) -> float:
        """Cycles a second: each cell of a matrix unit does one multiply-add a cycle."""
        return self.flops / (2 * self.matrix_units * self.matrix_width**2)


SOURCES = (
    "Google Cloud TPU documentation, cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e: peak "
    "compute (bf16), HBM, matrix units, and bidirectional interconnect per chip (v5e 400, v5p "
    "1200, v6e 800 GB/s), here per direction and link, of which a chip has 4, 6 and 4. The page "
    "of v4 gives none: its all-reduce bandwidth per pod, 1.1 PB/s, over 4096 chips and 6 links. "
    "The page of v6e counts 2 matrix units, which would need a clock of 3.5 GHz: 4 are assumed."
)
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.2e12, 1.1e15 / 4096 / 6, 8, 128, 4, 2),
        Chip("v5e", 197e12, 16 * GIB, 0.819e12, 50e9, 4, 128, 16),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 100e9, 8, 128, 4),
        Chip("v6e", 918e12, 32 * GIB, 1.638e12, 100e9, 4, 256, 16),
    )
}
KNOWN = (
    *("v4:2x2x1", "v4:2x2x2", "v4:2x2x4", "v4:2x4x4", "v4:4x4x4", "v4:4x4x8"),
    *("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    *("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8"),
    *("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
)
"""Slices that Google rents out, by chip and arrangement of chips (not of cores)."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind, `shape` of them along each dimension."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def injection(self) -> float:
        """Bytes a second that the worst-placed chip sends to its neighbours; 0 for a lone chip.

        A chip at the edge of a dimension that is no ring has one link there, and an all-reduce
        waits for it.
        """
        rings = self.chip.wraps
        links = [1 if size < rings or size == 2 else 2 for size in self.shape if size > 1]
        return self.chip.ici * sum(links)

    def all_reduce_seconds(self, size: float) -> float:
        """Least time to sum `size` bytes over all chips: each sends 2 (n - 1) / n of them."""
        return 2 * (self.chips - 1) / self.chips * size / self.injection if self.chips > 1 else 0.0


def parse_slice(text: str) -> Slice:
    """`v5e:2x4` as a Slice.

    Raises:
      ConfigError: none of KNOWN; names the nearest, and all.
    """
    if text not in KNOWN:
        near = difflib.get_close_matches(text, KNOWN, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown topology {text!r}; nearest: {near}; known: {', '.join(KNOWN)}")
    kind, shape = re.split(":", text)
    return Slice(CHIPS[kind], tuple(int(size) for size in shape.split("x")))


def devices(target: Slice) -> list[Any]:
    """The slice's devices, `Chip.cores` a chip, to compile for; none of them can run anything.

    Sets the environment variables that keep libtpu from looking for a TPU.

    Raises:
      ConfigError: libtpu is not installed, or does not know this slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu, the TPU compiler, is not installed; it comes with pip install 'zmar-jax[tpu]' "
            "(in a clone: pip install '.[tpu]') and needs no TPU"
        )
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    alone = {"chips_per_host_bounds": (1, 1, 1)} if target.chips == 1 else {}
    try:
        found = topologies.get_topology_desc(target.name, "tpu", **alone).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as e:
        raise ConfigError(f"libtpu cannot describe {target.name}: {e}") from e
    return list(found)


_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
