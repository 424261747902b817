"""What share of its time a run trains, over all its starts, and what the rest goes to."""

from collections.abc import Mapping
from typing import Any

CAUSES = ("data", "compiling", "validation", "saving", "restart")
"""Where time is lost. `restart` is all that is not accounted for: starting, standing still between
two starts, and steps that are done again as no checkpoint had them."""


class Goodput:
    """Counts from the first record of a run on; each record holds what the next start goes on from.

    ```
    goodput = Goodput(last_record, now)  # the record that the run goes on from, or {}
    record |= goodput.record(spent, now)  # time, run_seconds, goodput, lost_data, lost_compiling...
    ```
    """

    def __init__(self, last: Mapping[str, Any], begun: float):
        """last: the last record of the steps that count; begun: when this start began, in seconds
        since 1970."""
        known = "run_seconds" in last and "time" in last
        self._begun = last["time"] - last["run_seconds"] if known else begun
        total = last["run_seconds"] if known else 0.0
        self._lost = {c: total * last.get(f"lost_{c}", 0.0) if known else 0.0 for c in CAUSES[:-1]}
        self._trained = total * last.get("goodput", 0.0) if known else 0.0

    def record(self, spent: Mapping[str, float], training: float, now: float) -> dict[str, float]:
        """What to write down at a log step.

        Args:
          spent: seconds since the last call, by cause; training: the rest of them; now: seconds
            since 1970.

        Returns:
          time, run_seconds, and of these the shares goodput and lost_CAUSE, which are 1 together.
        """
        for cause, seconds in spent.items():
            self._lost[cause] = self._lost.get(cause, 0.0) + seconds
        self._trained += training
        total = max(now - self._begun, self._trained + sum(self._lost.values()), 1e-9)
        lost = {**self._lost, "restart": total - self._trained - sum(self._lost.values())}
        return {
            "time": now,
            "run_seconds": total,
            "goodput": self._trained / total,
            **{f"lost_{cause}": seconds / total for cause, seconds in lost.items()},
        }
