"""What a visitor wants done with a picture, checked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from zmar_jax.demo.errors import DemoError

MOST_SAMPLES = 64
MASKS = ("auto", "none", "painted")


@dataclasses.dataclass(frozen=True)
class Wish:
    """As the options of `restore`; `weights` is a name of `studio.Shelf`."""

    weights: str = "bundled"
    brightness: float = 1.0
    heat: float = 0.0
    samples: int = 1
    seed: int = 0
    mask: Literal["auto", "none", "painted"] = "auto"


def wish(form: Any) -> Wish:
    """The wish in decoded JSON, an object whose keys are fields of `Wish`.

    Raises:
      DemoError: names the field, and what it must be.
    """
    if not isinstance(form, Mapping):
        raise DemoError("expected a JSON object")
    known = {field.name for field in dataclasses.fields(Wish)}
    if unknown := sorted(set(form) - known):
        raise DemoError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    weights, mask = form.get("weights", "bundled"), form.get("mask", "auto")
    if not isinstance(weights, str) or not weights:
        raise DemoError("weights must be a name")
    if mask not in MASKS:
        raise DemoError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
    found = Wish(
        weights,
        _number(form, "brightness", 1.0, 0.1, 10),
        _number(form, "heat", 0.0, 0, 2),
        int(_number(form, "samples", 1, 1, MOST_SAMPLES, whole=True)),
        int(_number(form, "seed", 0, 0, 2**32 - 1, whole=True)),
        cast(Any, mask),
    )
    if found.samples > 1 and not found.heat:
        raise DemoError("samples above 1 need a heat above 0, else all samples are the same")
    return found


def _number(
    form: Mapping[str, Any],
    name: str,
    default: float,
    least: float,
    most: float,
    whole: bool = False,
) -> float:
    value = form.get(name, default)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise DemoError(f"{name} must be {kind} from {least} to {most}, got {value!r}")
    return value
