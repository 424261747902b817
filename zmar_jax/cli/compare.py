"""`compare`."""

import json
import math
from pathlib import Path
from typing import Annotated

from rich.text import Text
from tyro.conf import arg

from zmar_jax.cli.console import UsageError, err, out
from zmar_jax.files.places import Place


def compare(
    *,
    weights: Place,
    activations: Path,
    tolerance: float | None = None,
    key: str | None = None,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Find the layer where PyTorch and this package part, from activations that PyTorch dumped.

    Prints each layer's largest difference, relative to the root mean square of what PyTorch had, in
    the order of computing, and marks the first above the tolerance. The exit code is 1 if there is
    one. scripts/dump_activations.py writes the activations of any PyTorch module that has the
    published names.

    $ python scripts/dump_activations.py --weights LOLv2_G.pth --out dump.npz

    $ zmar-jax compare --weights LOLv2_G.pth --activations dump.npz

    Args:
      weights: Those that PyTorch had: .pth, .safetensors, an Orbax directory or a run's workdir.
      activations: What dump_activations.py wrote.
      tolerance: Above which a layer has diverged; if not given, 0.001, or 0.03 where PyTorch had
        computed in float16 and 0.2 in bfloat16.
      key: Which of several state dicts of a file; `zmar-jax info` names them.
      json_output: Print JSON instead of lines.
    """
    from zmar_jax.evaluate import parity
    from zmar_jax.weights import load_weights

    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance must be 0 or more, got {tolerance}")
    dump = parity.read_dump(activations)
    loaded = load_weights(weights, key)
    allowed = dump.tolerance if tolerance is None else tolerance
    first: list[str] = []

    def show(row: parity.Row) -> None:
        mark = "" if not row.diverged else "  diverged" if first else "  <- first divergence"
        if row.diverged:
            first.append(row.name)
        if not json_output:
            style = "bold red" if mark.endswith("divergence") else "red" if mark else ""
            out.print(Text(f"{row.difference:9.2e}  {row.name}{mark}", style=style))

    rows = parity.compare(loaded, dump, allowed, show)
    left_out = parity.not_compared(dump, rows)
    if json_output:
        shown = [{**row._asdict(), "difference": _plain(row.difference)} for row in rows]
        result = {"tolerance": allowed, "first_divergence": first[0] if first else None}
        out.print(json.dumps(result | {"layers": shown, "not_compared": left_out}))
        return 1 if first else 0
    if left_out:
        err.print(
            f"{len(left_out)} modules of the file have no counterpart here and were not compared, "
            f"as {left_out[0]}"
        )
    if first:
        out.print(f"{first[0]} is the first of {len(rows)} that differs by more than {allowed:g}")
        return 1
    worst = max(rows, key=lambda row: row.difference)
    out.print(f"all {len(rows)} agree within {allowed:g}; the worst: {worst.name}")
    return 0


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
