"""What the fields of a configuration may hold."""

import dataclasses
import reprlib
from typing import Any

LARGEST = 2**16


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and fix."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_range(name: str, bounds: tuple[float, float]) -> None:
    """Raises ConfigError unless `bounds` is low, then high."""
    require(bounds[0] <= bounds[1], f"{name} must be a range, low to high, got {bounds}")


def bounded(default: Any, at_least: float, at_most: float = LARGEST) -> Any:
    """A dataclass field whose numbers lie between these bounds, both included."""
    metadata = {"at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(config: Any) -> None:
    """Raises ConfigError unless all numbers are within bounds: those of `bounded`, else whole
    numbers from 1 and floats of moderate size; None and flags are always allowed.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = [
            n
            for n in (value if isinstance(value, tuple) else (value,))
            if isinstance(n, int | float) and not isinstance(n, bool)
        ]
        low, high = field.metadata.get("at_least"), field.metadata.get("at_most", LARGEST)
        if low is None and all(isinstance(n, int) for n in numbers):
            low = 1
        if low is None:
            # NaN fails this comparison too.
            fits, wanted = all(abs(n) <= LARGEST for n in numbers), f"a number up to {LARGEST}"
        else:
            fits, wanted = all(low <= n <= high for n in numbers), f"from {low} to {high}"
        require(fits, f"{field.name} must be {wanted}, got {reprlib.repr(value)}")
