"""Stopping in time: SIGTERM, as of a preempted machine, and Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and the first Ctrl-C into an answer for the loop; a second Ctrl-C interrupts.

    What it yields is asked after each step, with its number, whether to save and end. With
    several processes it is JAX's preemption service that hears SIGTERM, and the answer is yes at
    the same step in all of them; all must ask at every step.

    Must be entered in the main thread.
    """
    if jax.process_count() > 1:
        # The service has set its own handler for SIGTERM.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, remember) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
