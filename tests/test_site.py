"""The documentation's site and its notebook, built and run; needs the extra `docs`."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
MOST = 1.5e6
"""Bytes of the notebook with its outputs."""

needs_docs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_nb")),
    reason="the site's tools are not installed: pip install 'zmar-jax[docs]'",
)
TINY = "model.dim=2 model.blocks=[1,1,1,1] model.heads=[1,1,1,1] model.flow_steps=1"
QUICK = {
    "ZMAR_NOTEBOOK_MINUTES": "0.05",
    "ZMAR_NOTEBOOK_SIZE": "64",
    "ZMAR_NOTEBOOK_SETTINGS": f"{TINY} data.batch_size=4 data.crop=16 "
    "data.folder=pairs/gt data.val_folder=pairs/gt data.clean=true",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def here() -> dict[str, str]:
    """The environment of a process that imports this clone."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_has_its_outputs_and_is_small() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    pictures = [
        out for cell in cells for out in cell["outputs"] if "image/png" in out.get("data", ())
    ]
    assert len(pictures) >= 4
    assert NOTEBOOK.stat().st_size < MOST


def test_the_notebook_shows_no_path_of_the_machine_that_ran_it() -> None:
    shown = json.dumps([cell["outputs"] for cell in code_cells()])
    assert not re.findall(r"/root/|/home/|/tmp/", shown)


class Links(HTMLParser):
    """What a page links to and shows, and the places in it that may be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.targets += [found[name] or "" for name in ("href", "src") if found.get(name)]
        if found.get("id"):
            self.places.add(found["id"] or "")


@pytest.mark.slow
@needs_docs
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site"],
        env=here(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {page: Links(page) for page in (tmp_path / "site").rglob("*.html")}
    written = {page.stem for page in pages}
    assert {page.stem for page in ROOT.glob("docs/*.md")} | {"quickstart"} <= written
    links = 0
    for page, found in pages.items():
        for link in found.targets:
            if re.match(r"\w+:", link) or link == "#":
                continue
            name, _, place = link.partition("#")
            target = (page.parent / unquote(name.partition("?")[0])).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            if place and target in pages and page.name != "search.html":
                assert unquote(place) in pages[target].places, f"{page.name}: {link}"
            links += 1
    assert links > 1000
    # all that a page loads is in the folder
    loads = re.compile(r'(?:<script[^>]+src|<link[^>]+rel="stylesheet"[^>]+href)="(https?:[^"]+)')
    assert not [
        loads.findall(page.read_text("utf-8"))
        for page in pages
        if loads.search(page.read_text("utf-8"))
    ]


@pytest.mark.slow
@needs_docs
def test_the_notebook_runs(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    script = ROOT / "scripts" / "run_notebook.py"
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, script, tmp_path / NOTEBOOK.name, "--out", out],
        env=here() | QUICK,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cells = [c for c in json.loads(out.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert "1 of 1 restored" in shown
    assert shown.count("bits per dimension") == 2
    assert len(re.findall(r"^ *\d+ +[\d.]+ s ", done.stdout, re.M)) == len(cells)
