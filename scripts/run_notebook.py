"""Runs a notebook from top to bottom, keeps what it shows, and says how long each cell took.

Needs nbclient and ipykernel: pip install '.[docs]'.

    python scripts/run_notebook.py docs/quickstart.ipynb

The cells run in a folder of their own, which is removed. The notebook is written in place, or to
--out, only when all of its cells have run.
"""

import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from zmar_jax.files.replacing import write_whole

LIMIT = 1200
"""Seconds that a cell may take."""


def execute(notebook: Any, folder: Path) -> list[float]:
    """Runs all cells in `folder`, with this process's environment; returns each one's seconds.

    Raises:
      CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources=resources, record_timing=True
    )
    client.execute()
    return [_seconds(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _seconds(cell: Any) -> float:
    """What a cell took; its times are removed, so that two runs differ by what they show."""
    times = cell.metadata.pop("execution")
    first, last = (
        datetime.fromisoformat(times[kind].replace("Z", "+00:00"))
        for kind in ("iopub.status.busy", "iopub.status.idle")
    )
    return (last - first).total_seconds()


def main(notebook: Positional[Path], /, *, out: Path | None = None) -> None:
    """Runs a notebook and writes it with what its cells show.

    Args:
      notebook: The .ipynb file.
      out: Where to write it; in place if not given.
    """
    if not notebook.is_file():
        sys.exit(f"{notebook}: no such file")
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient.exceptions import CellExecutionError  # pyright: ignore[reportMissingImports]

    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        try:
            seconds = execute(content, Path(folder))
        except CellExecutionError as e:
            sys.exit(f"{notebook}: {e}")
    target = out or notebook
    write_whole(target, nbformat.writes(content) + "\n")
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    for number, (cell, took) in enumerate(zip(code, seconds, strict=True), 1):
        print(f"{number:3} {took:8.1f} s  {cell.source.splitlines()[0]}")
    print(f"all {sum(seconds):8.1f} s  {target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
