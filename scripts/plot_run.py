"""Plots a training run: validation PSNR and the loss, from WORKDIR/metrics.jsonl.

Needs matplotlib, which pip install '.[dev]' brings.

$ python scripts/plot_run.py runs/nano nano.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional


def main(workdir: Positional[Path], picture: Positional[Path], /) -> None:
    """Writes a picture of a run's progress.

    Args:
      workdir: Of `zmar-jax train`.
      picture: A .png or .svg file to write.
    """
    import matplotlib.pyplot as plt

    path = workdir / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"{path}: no such file; name the workdir of a training run")
    lines = path.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(*_column(records, "val_psnr"), "o-", color="black", label="restored")
    left.plot(*_column(records, "val_psnr_input"), ":", color="grey", label="input")
    left.set(xlabel="step", ylabel="validation PSNR, dB")
    left.legend(frameon=False)
    right.plot(*_column(records, "bits_per_dim"), color="black")
    right.set(xlabel="step", ylabel="bits per dimension, training")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=100)


def _column(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    rows = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
