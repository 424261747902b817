"""`score`."""

import json
import math
from pathlib import Path
from typing import Annotated

from rich.table import Table
from tyro.conf import arg

from zmar_jax.cli.console import check_seed, err, memory_limit, out, progress, say_source
from zmar_jax.files.places import Place


def score(
    *,
    low: Path,
    restored: Path,
    checkpoint: Annotated[Place | None, arg(aliases=["-c"])] = None,
    seed: int = 0,
    memory: str | None = None,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Tell how plausible restorations are: their likelihood given the low pictures.

    That is the negative log-likelihood in bits per dimension; lower is more plausible. Compare
    restorations of the same low picture only: it depends on the scene as well. Any method's
    restorations will do, and so will ground truths.

    $ zmar-jax score --low low.png --restored restored.png -c weights

    $ zmar-jax score --low low/ --restored restored/ -c weights --json

    Args:
      low: Dark picture, or a folder of them.
      restored: Restored picture, or a folder of them with the same names.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir;
        without it, the small model that comes with the package.
      seed: Of the dequantisation noise.
      memory: What a picture may take on each device, as 16GiB; by default what is free.
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.evaluate.likelihood import find_pairs, score_pairs
    from zmar_jax.evaluate.network import Network
    from zmar_jax.evaluate.records import plain
    from zmar_jax.runtime import compilation
    from zmar_jax.weights import load_weights

    check_seed(seed)
    limit = memory_limit(memory)
    pairs = find_pairs(low, restored, err.print)
    weights = load_weights(checkpoint)
    say_source(checkpoint, weights.source)
    compilation.enable_cache()
    with progress(len(pairs), "scoring") as step:
        scores = score_pairs(Network(weights, memory_limit=limit), pairs, seed, step)
    broken = [id_ for id_, bits in scores.items() if not math.isfinite(bits)]
    for id_ in broken:
        err.print(f"warning: {id_}: its likelihood is not finite", style="yellow")
    mean = math.nan if broken else math.fsum(scores.values()) / len(scores)
    if json_output:
        result = plain({"weights": weights.checksum, "seed": seed, "mean": mean})
        out.print(json.dumps(result | {"bits_per_dim": plain(scores)}))
        return
    table = Table(title="negative log-likelihood, bits per dimension")
    table.add_column("picture")
    table.add_column("bits/dim", justify="right")
    for id_, bits in scores.items():
        table.add_row(id_, f"{bits:.4f}")
    table.add_section()
    table.add_row("mean", f"{mean:.4f}")
    out.print(table)
