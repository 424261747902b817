"""Memory that there is, that a program takes, and that a process has held."""

import contextlib
import math
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import jax

GIB = 1 << 30
RESERVE = 0.1
"""Share of the memory that is left to others where nobody says how much to use."""


class MemoryLimitError(ValueError):
    """What is asked for does not fit into memory."""


def check_program(compiled: Any, what: str, advice: str, local_devices: int = 1) -> None:
    """Returns if a compiled program finds the memory that XLA has counted for it.

    Args:
      compiled: of `jax.stages.Compiled`; its arguments lie in memory already.
      what: the beginning of the message, as "a training step"; advice: its end.
      local_devices: how many of this host's run it.

    Raises:
      MemoryLimitError: it would take more than there is; it was not run.
    """
    counted = compiled.memory_analysis()
    need = (
        counted.temp_size_in_bytes
        + counted.output_size_in_bytes
        - counted.alias_size_in_bytes  # results in the place of arguments
    )
    left = free() // (local_devices if on_cpu() else 1)
    if need > left:
        raise MemoryLimitError(
            f"{what} needs {need / GIB:.1f} GiB of memory more than is taken already, and "
            f"{left / GIB:.1f} GiB are free; {advice}"
        )


def free() -> int:
    """Bytes that may still be taken on the first device, or on this host where that is a CPU.

    An accelerator has nobody else to leave a reserve to.
    """
    if stats := accelerator_stats():
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int((1 - RESERVE) * _host_memory())


def accelerator_stats() -> dict[str, int]:
    """What the first device tells of its memory, bytes; empty of a CPU, or if it tells nothing."""
    stats = None if on_cpu() else jax.local_devices()[0].memory_stats()
    return stats if stats and "bytes_limit" in stats else {}


def on_cpu() -> bool:
    """Whether programs run on the CPU, so that all devices share the host's memory."""
    return jax.default_backend() == "cpu"


def peak_memory() -> int:
    """The most memory that this process has held, bytes; an accelerator's where there is one."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    with contextlib.suppress(OSError, IndexError):  # on Linux, where ru_maxrss has the parent's
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
