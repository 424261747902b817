"""Ending early when asked: one flag for Ctrl-C, and for SIGTERM where there is work to save.

An exception in the middle of XLA's compiler ends in a crash, and one in the middle of a write in
half a file. So a signal is remembered, and whoever works looks between two pictures or steps.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C has ended, as shells have it."""
_heard: set[int] = set()
_blocks = 0


def heard() -> bool:
    """Whether a signal has come in the block of `remembered`."""
    return bool(_heard)


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt where Ctrl-C has been remembered: to be called at safe points."""
    if signal.SIGINT in _heard:
        raise KeyboardInterrupt


@contextlib.contextmanager
def remembered(*signals: int) -> Iterator[None]:
    """In the block the signals do nothing but set the flag; a second Ctrl-C raises as ever.

    Blocks may lie in each other; the flag is cleared when the outermost ends. Outside the main
    thread, where Python has no signals, a block changes nothing.
    """
    global _blocks
    if not _in_main_thread():
        yield
        return

    def remember(signum: int, frame: FrameType | None) -> None:
        _heard.add(signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, remember) for s in signals}
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if not _blocks:  # what is done afterwards, nobody has asked to end
            _heard.clear()


@contextlib.contextmanager
def second_ends(
    tell: Callable[[], None], end: Callable[[int], object] = os._exit
) -> Iterator[None]:
    """In the block the first Ctrl-C calls `tell`, and the second ends the process at once.

    A thread hears of both, also while the main thread compiles and Python's handlers wait.
    Outside the main thread a block changes nothing.

    Args:
      end: ends the process with this exit code.
    """
    if not _in_main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)  # else Python refuses it

    def listen() -> None:
        interrupts = 0
        while signum := os.read(read, 1)[0]:
            if signum == signal.SIGINT:
                interrupts += 1
                tell() if interrupts == 1 else end(INTERRUPTED)

    thread = threading.Thread(target=listen, daemon=True)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write, b"\0")  # no signal has this number
        thread.join()
        os.close(read)
        os.close(write)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _forget_parent() -> None:
    if _blocks:  # a child would tell the parent's thread of its own signals
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_parent)
