"""Results as text: metrics.json, per_image.csv, and a table beside the published numbers.

Numbers of one column are of one kind of input and one protocol (DATASETS).
"""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from zmar_jax.evaluate.evaluation import METRICS, Evaluation
from zmar_jax.evaluate.records import writing
from zmar_jax.run.folder import write_whole

_README = """
            lol_v1 lol_v2_real lol_v2_synthetic sdsd_indoor sdsd_outdoor sid
MIRNet        20.61/0.732 21.17/0.757 22.13/0.862 28.11/0.847 28.83/0.858 20.82/0.605
Retinexformer 23.27/0.805 21.29/0.802 24.73/0.901 30.08/0.893 28.85/0.853 21.75/0.618
LLFormer      20.37/0.677 18.95/0.697 22.67/0.814 28.05/0.837 28.72/0.849 20.91/0.582
Restormer     21.84/0.794 21.70/0.794 24.02/0.902 29.15/0.869 27.56/0.835 21.16/0.637
LLFlow        20.09/0.829 19.19/0.823 22.19/0.901 27.45/0.899 28.90/0.869 18.63/0.609
ZMAR-SNFlow   23.37/0.843 24.15/0.862 25.62/0.928 30.60/0.905 30.03/0.876 21.80/0.638
"""
_NAMES, *_ROWS = (line.split() for line in _README.strip().splitlines())
PUBLISHED: dict[str, dict[str, str]] = {
    name: {row[0]: row[1 + i].replace("/", " / ") for row in _ROWS} for i, name in enumerate(_NAMES)
}
"""PSNR / SSIM by benchmark and method, from the authors' README (DATASETS)."""
PUBLISHED_COLUMN = "masked inputs, protocol zmar"
_PER_IMAGE = ("id", "height", "width", *METRICS, "seconds")


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the method. `notes` belong below it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]
        return "\n".join([*text, "", *(f"* {note}" for note in self.notes)]) + "\n"


def compare(found: Evaluation) -> Table:
    """Ours, beside the published numbers of the same benchmark; PSNR (dB) / SSIM."""
    own, published = column(found.settings), PUBLISHED.get(found.settings["data"], {})
    if found.settings["kind"] != "benchmark":
        published = {}
    columns = [PUBLISHED_COLUMN] if published and own != PUBLISHED_COLUMN else []
    columns.append(own)

    def row(method: str, column: str, cell: str) -> tuple[str, ...]:
        return method, *(cell if column == c else "" for c in columns)

    rows = [
        row(f"{method}, published", PUBLISHED_COLUMN, numbers)
        for method, numbers in published.items()
    ]
    for method, kind in (("this evaluation", ""), ("its inputs", "_input")):
        psnr, ssim = interval(found, f"psnr{kind}", 2), interval(found, f"ssim{kind}", 3)
        rows.append(row(method, own, f"{psnr} / {ssim}"))
    return Table(("PSNR / SSIM", *columns), tuple(rows), tuple(_notes(found, bool(published))))


def column(settings: dict[str, Any]) -> str:
    """The kind of input and the protocol, as the head of a column says it."""
    if settings["masks"] != "none":
        inputs = "masked inputs"
    else:
        inputs = "pairs as given" if settings["kind"] == "pairs" else "unmasked inputs"
    return f"{inputs}, protocol {settings['protocol']}" + ", gt_mean" * settings["gt_mean"]


def interval(found: Evaluation, metric: str, digits: int) -> str:
    """`mean (low to high)`."""
    mean, low, high = (found.means[metric][key] for key in ("mean", "low", "high"))
    if mean is None:
        return "not finite"
    bounds = "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{mean:.{digits}f}{bounds}"


def _notes(found: Evaluation, published: bool) -> list[str]:
    settings = found.settings
    zero = math.fsum(record["lost_share"] for record in found.records) / len(found.records)
    notes = [
        f"{len(found.records)} pictures of {settings['data']}, weights {settings['weights']}, "
        f"seed {settings['seed']}; in brackets: 95 % bootstrap interval of the mean.",
        f"{interval(found, 'bits_per_dim', 3)} bits per dimension, {found.seconds:.2f} seconds a "
        f"picture; {zero:.0%} of the input's pixels are zero.",
    ]
    if settings["heat"] or settings["self_ensemble"]:
        ensemble = ", each in 8 turns and mirrors" if settings["self_ensemble"] else ""
        samples = f"samples: {settings['samples']}, heat: {settings['heat']}{ensemble}"
        notes.append(f"Restorations are means; {samples}.")
    if published and column(settings) == PUBLISHED_COLUMN:
        notes.append(
            "The authors did not publish their masks: ours measure alike, but are others."
            if settings["masks"] == "procedural"
            else f"Masks of {settings['masks']}; the authors did not publish theirs."
        )
    elif published:
        notes.append(
            "The published numbers are of masked inputs by protocol zmar, hence in a column of "
            "their own: no number of another column compares with them."
        )
    if settings.get("sdsd_frames"):
        notes.append(f"The first {settings['sdsd_frames']} frames of each scene.")
    return notes


def write_numbers(found: Evaluation, folder: Path) -> None:
    """metrics.json, which repeats byte for byte; per_image.csv, with seconds; and table.md.

    Raises:
      EvaluationError: they cannot be written.
    """
    images = [{key: record[key] for key in _PER_IMAGE[:-1]} for record in found.records]
    metrics = {**found.settings, "images": len(images), "mean": found.means, "per_image": images}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_PER_IMAGE)
    rows.writerows([record[key] for key in _PER_IMAGE] for record in found.records)
    with writing(folder):
        write_whole(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_whole(folder / "per_image.csv", text.getvalue())
        write_whole(folder / "table.md", compare(found).markdown())


def facts(found: Evaluation) -> tuple[tuple[str, str, str], ...]:
    """What a reader wants first: name, value, and its interval or what it is of."""

    def fact(name: str, metric: str, digits: int, unit: str = "") -> tuple[str, str, str]:
        value, _, bounds = interval(found, metric, digits).partition(" (")
        return name, value + unit, bounds.rstrip(")")

    return (
        fact("PSNR", "psnr", 2, " dB"),
        fact("SSIM", "ssim", 4),
        fact("bits per dimension", "bits_per_dim", 3),
        fact("PSNR of the input", "psnr_input", 2, " dB"),
        ("seconds a picture", f"{found.seconds:.2f}", "without compiling"),
        ("pictures", str(len(found.records)), column(found.settings)),
    )
