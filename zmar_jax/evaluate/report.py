"""report.html: one file that shows an evaluation without a network."""

import base64
import dataclasses
import html
import io
import json
import math
import string
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from zmar_jax.evaluate.evaluation import Evaluation
from zmar_jax.evaluate.measures import measures_of, zero_pixels
from zmar_jax.evaluate.pairs import Pairs
from zmar_jax.evaluate.records import RESTORED, UNCERTAINTY, Record, levels_of, writing
from zmar_jax.evaluate.table import compare, facts
from zmar_jax.files.replacing import write_whole
from zmar_jax.imaging.images import Step, read_photo

SIDE, PICTURES, LEAST_SIDE = 600, 100, 160
"""Longest side of the pictures that are shown, pixels; more than so many pictures are made smaller,
so that the file stays below 30 MB, but not smaller than the last."""
QUALITY = 85
_LOST_COLOUR = (230, 0, 126, 200)


def write_report(
    found: Evaluation,
    pairs: Pairs,
    folder: Path,
    step: Step = lambda source, target, error: None,
) -> Path:
    """Writes `folder`/report.html, with the pictures that `folder` holds; its path.

    Raises:
      EvaluationError, ImageError, DataError: it cannot be written, or a picture not read.
    """
    side = round(min(SIDE, max(LEAST_SIDE, SIDE * math.sqrt(PICTURES / len(found.records)))))
    deviation = _largest_deviation(found, folder)
    measures = measures_of(found.settings["kind"])
    columns = [
        {"key": "id", "label": "picture"},
        *(dataclasses.asdict(measures[key]) for key in measures.columns),
        {"key": "seconds", "label": "seconds", "digits": 2},
    ]
    title, x, y = measures.plot
    images = []
    for i, record in enumerate(found.records):
        pictures = _pictures(record["id"], pairs.read(i), folder, side, deviation)
        images.append({**{c["key"]: _shown(record, c["key"]) for c in columns}, **pictures})
        step(Path(record["id"]), folder / "report.html", None)
    table = compare(found)
    data = {
        "facts": facts(found),
        "table": {"head": table.head, "rows": table.rows, "notes": table.notes},
        "columns": columns,
        "plot": {"title": title, "x": x, "y": y},
        "images": images,
        "deviation": deviation
        and f"(dark to bright: standard deviation 0 to {deviation:.3g} of 255)",
    }
    path = folder / "report.html"
    with writing(path):
        write_whole(path, _page(f"Evaluation on {found.settings['data']}", data))
    return path


def _shown(record: Record, key: str) -> Any:
    """A number as the script of the page expects it: JSON has no infinity."""
    return "infinite" if key in record.get("infinite", ()) else record[key]


def _page(title: str, data: Any) -> str:
    here = resources.files("zmar_jax.evaluate")
    page, style, script = (
        (here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    # without < no name of a picture can end the element; \u escapes are JSON's own
    text = json.dumps(data).replace("<", "\\u003c")
    return string.Template(page).substitute(
        title=html.escape(title), style=style, script=script, data=text
    )


def _largest_deviation(found: Evaluation, folder: Path) -> float | None:
    """The brightest colour of all maps: the highest 99th percentile; None without maps."""
    tops = [
        float(np.percentile(levels_of(_read(folder, UNCERTAINTY, record["id"])), 99))
        for record in found.records
        if any(name.startswith(f"{UNCERTAINTY}/") for name in record["files"])
    ]
    return max(*tops, 1 / 256) if tops else None


def _pictures(
    id_: str,
    pair: tuple[np.ndarray, np.ndarray | None],
    folder: Path,
    side: int,
    deviation: float | None,
) -> dict[str, Any]:
    low, gt = pair
    height, width = low.shape[:2]
    shrink = min(1, side / max(height, width))
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    shown = {"input": low, "restored": _read(folder, RESTORED, id_)}
    if gt is not None:
        shown["gt"] = gt
    if deviation:
        levels = levels_of(_read(folder, UNCERTAINTY, id_)) / deviation
        grey = np.round(255 * np.minimum(levels, 1)).astype(np.uint8)
        shown["uncertainty"] = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1]
    pictures = {name: _jpeg(pixels, size) for name, pixels in shown.items()}
    pictures["lost"] = _overlay(zero_pixels(low), size)
    return {"width": width, "height": height, "pictures": pictures}


def _read(folder: Path, kind: str, id_: str) -> np.ndarray:
    return read_photo(folder / kind / f"{id_}.png").rgb


def _jpeg(pixels: np.ndarray, size: tuple[int, int]) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX)
    return _data_uri(image, "JPEG", quality=QUALITY)


def _overlay(lost: np.ndarray, size: tuple[int, int]) -> str:
    """Colour where at least half of a shown pixel is lost, transparent elsewhere."""
    share = Image.fromarray(255 * lost.astype(np.uint8)).resize(size, Image.Resampling.BOX)
    image = share.point([value >= 128 for value in range(256)], "P")
    image.putpalette([0, 0, 0, *_LOST_COLOUR[:3]])
    return _data_uri(image, "PNG", bits=1, transparency=bytes([0, _LOST_COLOUR[3]]), optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
