"""A profile of some steps."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces from the first of `steps` to the last, or to the end of the run."""

    def __init__(self, steps: range | None, folder: Path):
        self._steps, self._folder, self._tracing = steps or range(0), folder, False

    def at(self, step: int, state: Any) -> None:
        """To be called before each step, with what the step before it computed."""
        if step in self._steps and not self._tracing:
            self._tracing = True
            jax.profiler.start_trace(str(self._folder))
        elif self._tracing and step not in self._steps:
            jax.block_until_ready(state)
            self.__exit__()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
