"""A command that is started again when it is killed or loses another host.

The command runs in a child process: a killed process cannot say what becomes of it, and neither can
one that JAX's coordination service ends because another host has gone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

LOST = 75
"""The exit code of a process that lost another host, as EX_TEMPFAIL: starting again may do."""
PAUSE = 2.0
"""Seconds before a start."""
_CHILD = "ZMAR_JAX_STARTED_AGAIN"


def is_child() -> bool:
    """Whether this process is one that `watched` has started."""
    return _CHILD in os.environ


def watched(command: Sequence[str], restarts: int, say: Callable[[str], None]) -> int:
    """Runs the command, and again up to `restarts` times while it ends as if by accident.

    That is by a signal, or with the code `LOST`. SIGTERM is passed on; after it, and after Ctrl-C,
    which the command hears itself, there is no other start. Must be called in the main thread.

    Returns:
      The exit code of the last start; 128 and the signal that ended it, as shells have it.
    """
    asked, child = False, None

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if signum == signal.SIGTERM and child is not None:
            child.send_signal(signum)

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for left in range(restarts, -1, -1):
            child = subprocess.Popen(list(command), env={**os.environ, _CHILD: "1"})
            if asked:  # since it was looked at, and before there was a child to pass it on to
                child.terminate()
            code = child.wait()
            if not _by_accident(code) or asked or not left:
                break
            say(f"{_ended(code)}; it starts again, {left - 1} more times if it must")
            time.sleep(PAUSE)
            if asked:
                break
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if _by_accident(code) and not asked:
        say(f"{_ended(code)}; the same command goes on from the newest checkpoint")
    return code if code >= 0 else 128 - code


def this_command() -> list[str]:
    """The command line of this process, for another."""
    return [sys.executable, "-m", "zmar_jax", *sys.argv[1:]]


def _by_accident(code: int) -> bool:
    return code < 0 or code == LOST


def _ended(code: int) -> str:
    if code == LOST:
        return "the training lost another host"
    return f"the training was ended by {signal.Signals(-code).name}"
