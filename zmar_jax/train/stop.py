"""Stopping in time: SIGTERM, which a preempted machine sends, and Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from zmar_jax.runtime import stop


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and the first Ctrl-C into an answer for the loop; a second Ctrl-C interrupts.

    What it yields is asked after each step, with its number, whether to save and end. With
    several processes it is JAX's preemption service that hears SIGTERM, and Ctrl-C is passed on to
    it: the answer is yes at the same step in all of them. So all must ask at every step.

    Must be entered in the main thread.
    """
    if jax.process_count() == 1:
        with stop.remembered(signal.SIGTERM, signal.SIGINT):
            yield lambda step: stop.heard()
        return
    # The service has set its own handler for SIGTERM.
    with stop.remembered(signal.SIGINT):
        passed_on = False

        def at_the_same_step(step: int) -> bool:
            nonlocal passed_on
            if stop.heard() and not passed_on:
                passed_on = True
                os.kill(os.getpid(), signal.SIGTERM)
            return multihost_utils.reached_preemption_sync_point(step)

        yield at_the_same_step
