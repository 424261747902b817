"""Memory that a process has held."""

import contextlib
import resource
import sys
from pathlib import Path

import jax


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
