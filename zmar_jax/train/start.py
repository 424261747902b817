"""What passes between the command and the first step that this start of a run trains."""

import contextlib
import time
from collections.abc import Iterator


class Start:
    """Counts from the command on."""

    def __init__(self, begun: float | None = None) -> None:
        """begun: when the command was, in seconds since 1970; by default now."""
        self.begun: float = begun or time.time()
        before = time.time() - self.begun
        self._clock = time.monotonic() - before
        self._stages: dict[str, float] = {"Python, JAX and the other hosts": before}
        self._seconds: float | None = None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Counts a block, unless it is after the first step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            if self._seconds is None:
                spent = time.monotonic() - begin
                self._stages[stage] = self._stages.get(stage, 0.0) + spent

    def trained(self) -> float | None:
        """To be called when a step is computed: seconds until then, of the first; else None."""
        if self._seconds is not None:
            return None
        self._seconds = time.monotonic() - self._clock
        return self._seconds

    def __str__(self) -> str:
        """In one line, after the first step."""
        total = self._seconds or 0.0
        stages = self._stages | {"the rest": total - sum(self._stages.values())}
        parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
        return f"first step {total:.1f} s after the command: {parts}"
