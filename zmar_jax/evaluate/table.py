"""Results as text: metrics.json, per_image.csv, and a table beside the published numbers.

Numbers of one column are of one kind of input and one protocol (docs/datasets.md).
"""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from zmar_jax.evaluate.evaluation import Evaluation
from zmar_jax.evaluate.measures import INPUT, Measure, measures_of, value_of
from zmar_jax.evaluate.records import Record, with_infinite, writing
from zmar_jax.files.replacing import write_whole

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
"""PSNR / SSIM by benchmark and method, from the authors' README (docs/datasets.md)."""
INFINITE = "infinite"
"""The PSNR where a picture equals its ground truth."""
PUBLISHED_COLUMN = "masked inputs, protocol zmar"


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
    """Ours, beside the published numbers of the same benchmark; two numbers a cell, as
    PSNR / SSIM."""
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
    measures = measures_of(found.settings["kind"])
    for method, whose in (("this evaluation", ""), ("its inputs", INPUT)):
        cells = (interval(found, key + whose, digits) for key, digits in measures.main)
        rows.append(row(method, own, " / ".join(cells)))
    head = " / ".join(measures[key].label for key, _ in measures.main)
    return Table((head, *columns), tuple(rows), tuple(_notes(found, bool(published))))


def column(settings: dict[str, Any]) -> str:
    """The kind of input and the protocol, as the head of a column says it."""
    given = {"pairs": "pairs as given", "dark": "pictures as given"}
    masked = settings["masks"] != "none"
    inputs = "masked inputs" if masked else given.get(settings["kind"], "unmasked inputs")
    if settings["kind"] == "dark":
        return f"{inputs}, no ground truth"
    return f"{inputs}, protocol {settings['protocol']}" + ", gt_mean" * settings["gt_mean"]


def interval(found: Evaluation, metric: str, digits: int) -> str:
    """`mean (low to high)`."""
    mean, low, high = (found.means[metric][key] for key in ("mean", "low", "high"))
    if mean is None:
        return "not finite"
    if math.isinf(mean):
        return INFINITE
    bounds = "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{mean:.{digits}f}{bounds}"


def _notes(found: Evaluation, published: bool) -> list[str]:
    settings = found.settings
    zero = math.fsum(record["lost_share"] for record in found.records) / len(found.records)
    notes = [
        f"{len(found.records)} pictures of {settings['data']}, weights {settings['weights']}, "
        f"seed {settings['seed']}; in brackets: 95 % bootstrap interval of the mean.",
        f"{found.seconds:.2f} seconds a picture; {zero:.0%} of the input's pixels are zero.",
    ]
    if settings["kind"] == "dark":
        notes.append("NIQE: lower is better. Brightness: the mean, of 255.")
    else:
        notes.append(f"{interval(found, 'bits_per_dim', 3)} bits per dimension.")
    if settings["heat"] or settings["views"] > 1:
        notes.append(
            f"Restorations are means; samples: {settings['samples']}, heat: {settings['heat']}, "
            f"mirrored and turned views: {settings['views']}."
        )
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
    columns = ("id", "height", "width", *measures_of(found.settings["kind"]).keys)
    told = (*columns, "infinite")
    images = [{key: r[key] for key in told if key in r} for r in found.records]
    means = {name: with_infinite(mean) for name, mean in found.means.items()}
    metrics = {**found.settings, "images": len(images), "mean": means, "per_image": images}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*columns, "seconds"))
    rows.writerows(
        [_cell(record, key) for key in (*columns, "seconds")] for record in found.records
    )
    with writing(folder):
        write_whole(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_whole(folder / "per_image.csv", text.getvalue())
        write_whole(folder / "table.md", compare(found).markdown())


def csv_text(text: str) -> str:
    """A cell of a CSV: spreadsheets run text that begins like a formula, but not after a quote."""
    return "'" * text.startswith(("=", "+", "-", "@", "\t", "\r")) + text


def _cell(record: Record, key: str) -> Any:
    """A cell of the CSV: infinity is written, and nothing where there is no number."""
    if isinstance(record[key], str):
        return csv_text(record[key])
    value = value_of(record, key)
    return None if math.isnan(value) else value


def facts(found: Evaluation) -> tuple[tuple[str, str, str], ...]:
    """What a reader wants first: name, value, and its interval or what it is of."""

    measures = measures_of(found.settings["kind"])

    def fact(measure: Measure) -> tuple[str, str, str]:
        value, _, bounds = interval(found, measure.key, measure.digits).partition(" (")
        unit = "" if value == INFINITE else measure.unit
        return measure.label, value + unit, bounds.rstrip(")")

    return (
        *(fact(measures[key]) for key in measures.facts),
        ("seconds a picture", f"{found.seconds:.2f}", "without compiling"),
        ("pictures", str(len(found.records)), column(found.settings)),
    )
