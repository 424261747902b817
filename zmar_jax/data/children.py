"""Processes that work for this one, and end with it."""

import multiprocessing
import os
import signal
import threading
from typing import Any


def follow_parent(*_: int) -> None:
    """To be called first in such a process; what Grain tells its workers is not needed.

    Ctrl-C and SIGTERM go to all processes, but it is the parent that decides to end; and where it
    was killed, nobody else tells those that work for it.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
