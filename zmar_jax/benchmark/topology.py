"""TPU slices and GPUs that are not there, and their devices to compile for."""

import dataclasses
import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

from zmar_jax.benchmark.chips import CHIPS, Chip, Gpu
from zmar_jax.config import ConfigError

KNOWN = (
    *("v4:2x2x1", "v4:2x2x2", "v4:2x2x4", "v4:2x4x4", "v4:4x4x4", "v4:4x4x8"),
    *("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    *("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8"),
    *("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
    *(f"{chip}:{count}" for chip in ("h100", "h200", "a100") for count in (1, 2, 4, 8)),
)
"""Slices that Google rents out, by chip and arrangement of chips (not of cores); GPUs of a host."""


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
        """Bytes a second that the worst-placed chip sends to others; 0 for a lone chip.

        An all-reduce waits for it.
        """
        return self.chip.injection(self.shape)

    def all_reduce_seconds(self, size: float) -> float:
        """Least time to sum `size` bytes over all chips: each sends 2 (n - 1) / n of them."""
        return 2 * (self.chips - 1) / self.chips * size / self.injection if self.chips > 1 else 0.0


def parse_slice(text: str) -> Slice:
    """`v5e:2x4`, `h100:8` or, for one GPU, `h100` as a Slice.

    Raises:
      ConfigError: none of KNOWN; names the nearest, and all.
    """
    name = f"{text}:1" if f"{text}:1" in KNOWN else text
    if name not in KNOWN:
        near = difflib.get_close_matches(text, KNOWN, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown topology {text!r}; nearest: {near}; known: {', '.join(KNOWN)}")
    kind, shape = re.split(":", name)
    return Slice(CHIPS[kind], tuple(int(size) for size in shape.split("x")))


def devices(target: Slice) -> list[Any]:
    """The slice's devices, `Chip.cores` a chip, to compile for; none of them can run anything.

    Sets the environment variables that keep libtpu from looking for a TPU, and JAX for a driver.

    Raises:
      ConfigError: the chip's compiler is not installed, or does not know this slice.
    """
    chip = target.chip
    compiler, extra, device, environment = _COMPILERS[chip.platform]
    if not installed(chip.platform):
        raise ConfigError(
            f"{compiler}, is not installed; it comes with pip install 'zmar-jax[{extra}]' "
            f"(in a clone: pip install '.[{extra}]') and needs no {device}"
        )
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    name, options = target.name, {}
    if isinstance(chip, Gpu):
        shape = {"topology": f"1x1x{target.chips}"}
        name, options = "", shape | {"target_config": chip.description()}
    elif target.chips == 1:
        options = {"chips_per_host_bounds": (1, 1, 1)}
    try:
        found = topologies.get_topology_desc(name, chip.platform, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError, RuntimeError) as e:
        raise ConfigError(f"{compiler}, cannot describe {target.name}: {e}") from e
    return list(found)


def installed(platform: str) -> bool:
    """Whether the compiler of a platform, `tpu` or `cuda`, is installed."""
    if platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any(plugin.name.startswith("xla_cuda") for plugin in plugins)


_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_COMPILERS = {
    "tpu": ("libtpu, the TPU compiler", "tpu", "TPU", _NO_TPU),
    "cuda": (
        "JAX's plugin for CUDA, XLA's GPU compiler",
        *("cuda", "GPU"),
        {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
    ),
}
"""Of each platform: its compiler, the extra that brings it, and what tells it to look for none."""
