"""Progress of long work, as the command line shows it."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from zmar_jax.imaging.images import Step

Bar = Callable[[int, str], AbstractContextManager[Step]]
"""`cli.console.progress`: (how many, what is done) -> what is called after each."""


def quiet(total: int, verb: str) -> AbstractContextManager[Step]:
    """No progress bar."""
    return contextlib.nullcontext(lambda low, gt, error: None)
