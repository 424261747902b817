"""How long this process has been running."""

import contextlib
import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_age() -> float:
    """Seconds since this process was started; where there is no Linux, since this was imported."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # behind the name of the program, which may hold spaces and brackets
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.monotonic() - _IMPORTED
