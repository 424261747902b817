"""The site: `sphinx-build -W docs site` (pip install '.[docs]'); see log.md for why Sphinx.

The pages are the files of this folder as they are read on a file browser, too, with the README as
the first. Their links to files outside of this folder lead to copies beside the pages.
"""

import posixpath
import re
import textwrap
from itertools import chain, zip_longest
from pathlib import Path

from zmar_jax import __version__

ROOT = Path(__file__).parents[1]
PAGES = {"zmar_jax/weights/README.md": "bundled.md"}
"""Files outside of this folder that are pages of the site."""
WHOLE = {"index": "README.md", "bundled": "zmar_jax/weights/README.md"}
"""Pages whose text is that of such a file."""

project = "zmar_jax"
author = "the authors of zmar_jax"
copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebook has its outputs: scripts/run_notebook.py
nb_merge_streams = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"zmar_jax {__version__}"
html_static_path: list[str] = []
html_show_sphinx = False


def setup(app) -> None:
    app.connect("source-read", _source_read)
    app.connect("autodoc-process-docstring", _docstring)


def _source_read(app, page: str, source: list[str]) -> None:
    """Puts a file's text where a page is that file, and turns links out of this folder."""
    text, folder = source[0], "docs"
    if page in WHOLE:
        whole = (ROOT / WHOLE[page]).read_text("utf-8")
        folder = posixpath.dirname(WHOLE[page])
        text = text.replace("<!-- WHOLE -->", whole)
        app.env.note_dependency(str(ROOT / WHOLE[page]))
    if Path(app.env.doc2path(page)).suffix == ".md":
        source[0] = re.sub(
            r"(?<=\])\((?!\w+:|#)([^)\s]+)\)", lambda match: f"({_link(match[1], folder)})", text
        )


def _link(link: str, folder: str) -> str:
    """A link of a file in `folder`, as a page of this folder has it."""
    name, _, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(folder, name)) if name else ""
    path = PAGES.get(path, path)
    if (ROOT / path).is_dir() and path:
        path = posixpath.join(path, "zmar_snflow.yaml")  # of configs/, the published model
    inside = path.removeprefix("docs/")
    if path.startswith("docs/") or path in PAGES.values() or not path:
        path = inside
    else:
        path = posixpath.join("..", path)
    return path + ("#" + anchor if anchor else "")


def _docstring(app, what, name, thing, options, lines: list[str]) -> None:
    """Docstrings are Markdown: code and fences become reStructuredText's, and a star is a star."""
    text = re.sub(
        r"^( *)```(\w*)\n(.*?)^ *```$",
        lambda m: f"{m[1]}.. code-block:: {m[2] or 'python'}\n\n{textwrap.indent(m[3], '   ')}",
        "\n".join(lines),
        flags=re.M | re.S,
    )
    parts = re.split(r"``?([^`]+)``?", text)  # what is between backticks is every second
    words = (re.sub(r"([*|])(?!\*)", r"\\\1", part) for part in parts[::2])
    words = (rf"\ {part}" if part[:1].isalnum() else part for part in words)
    code = (f"``{' '.join(part.split())}``" for part in parts[1::2])
    lines[:] = "".join(chain.from_iterable(zip_longest(words, code, fillvalue=""))).splitlines()
