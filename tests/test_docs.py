"""What the pages say is there: cited sections, linked files, the figure, the sizes."""

import dataclasses
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from zmar_jax.config import Config, ModelConfig

ROOT = Path(__file__).parents[1]
PAGES = {"model.md": ROOT / "docs" / "model.md", "datasets.md": ROOT / "docs" / "datasets.md"}
TEXT = (".md", ".py", ".yaml", ".toml", ".sh")
CITATION = re.compile(
    r"\bmodel\.md\s+sections?\s+(?P<numbers>\d+(?:(?:,\s*|\s+and\s+|\s+to\s+|-)\d+)*)"
    r'|\bdatasets\.md,\s+"(?P<title>[^"]+)"'
)


def files() -> list[Path]:
    """Everything with words in it, but what a build or a tool left."""
    folders = ("zmar_jax", "tests", "scripts", "configs", "docs", ".github")
    inside = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    found = [path for path in (*ROOT.glob("*"), *inside) if path.suffix in TEXT]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def words(path: Path) -> str:
    """The text of a page, or all comments and strings of a module, on one line."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None))
        text = "\n".join(t.string for t in tokens if t.type in kinds)
    return re.sub(r"[\s#]+", " ", text)


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)


def sections_cited(text: str) -> Iterator[int]:
    for match in CITATION.finditer(text):
        numbers = match["numbers"] or ""
        for part in re.split(r",\s*|\s+and\s+", numbers):
            first, *last = re.split(r"-|\s+to\s+", part)
            if first:
                yield from range(int(first), int(last[0] if last else first) + 1)


def test_a_citation_is_read() -> None:
    text = "(docs/model.md sections 2-4 and 7) model.md section 9, model.md sections 1 to 2"
    assert list(sections_cited(text)) == [2, 3, 4, 7, 9, 1, 2]


def test_every_cited_section_exists() -> None:
    numbers = [
        int(n) for n in re.findall(r"^(\d+)\.", "\n".join(headings(PAGES["model.md"])), re.M)
    ]
    assert numbers == list(range(1, 11))
    titles = headings(PAGES["datasets.md"])
    cited = set()
    for path in files():
        text = words(path)
        found = set(sections_cited(text))
        assert found <= set(numbers), path
        cited |= found if path.parts[-2] != "tests" else set()
        for match in CITATION.finditer(text):
            assert match["title"] is None or match["title"] in titles, path
    assert {1, 2, 3, 4, 5, 6, 7, 8, 9} <= cited


def test_nothing_cites_what_a_reader_does_not_have() -> None:
    # but `DATASETS` of the configuration, which code in f-strings joins
    gone = re.compile(
        r"\bSP" + r"EC\b|(?<!join\()\bDATA" + r"SETS(\.md| section|[,:)]| says)|shared/"
    )
    found = {path: gone.findall(words(path)) for path in files() if path != Path(__file__)}
    assert not {path for path, matches in found.items() if matches}


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings(path)}


def test_links_lead_somewhere() -> None:
    pages = [path for path in files() if path.suffix == ".md"]
    assert {ROOT / "README.md", *PAGES.values()} <= set(pages)
    links = 0
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"
            links += 1
    assert links > 20


def test_the_figure_is_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw_model", ROOT / "scripts" / "draw_model.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.draw(ModelConfig())
    assert script.OUT.read_text() == drawn, "run scripts/draw_model.py"


@pytest.mark.parametrize("page", ["README.md", "docs/model.md"])
def test_the_figure_is_shown(page: str) -> None:
    assert "model.svg)" in (ROOT / page).read_text("utf-8")


def test_the_table_of_sizes_is_the_published_configuration() -> None:
    text = PAGES["model.md"].read_text("utf-8").partition("## 1.")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.M)
    found = {name: tuple(float(part) for part in value.split(",")) for name, value in rows}
    assert len(found) == 15
    for name, values in found.items():
        default = getattr(ModelConfig(), name)
        assert values == (default if isinstance(default, tuple) else (default,)), name


@pytest.mark.parametrize("page", ["docs/from_pytorch.md", "docs/changing.md"])
def test_settings_on_a_page_are_those_of_the_configuration(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    settings = set(re.findall(r"[` ]((?:model|data|train)\.(?!py\b|md\b)\w+)", text))
    assert len(settings) > 3
    sections = {field.name: field.type for field in dataclasses.fields(Config)}
    for name in settings:
        section, _, key = name.partition(".")
        assert key in {field.name for field in dataclasses.fields(sections[section])}, name


def test_the_bijection_on_the_page_is_one() -> None:
    text = (ROOT / "docs" / "changing.md").read_text("utf-8")
    names: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    module, x = names["Gain"](), np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    x = jax.numpy.asarray(x, "float32")
    params = {"params": {"logs": jax.numpy.linspace(-1.0, 1.5, 5)}}
    y, logdet = module.apply(params, x, method="forward")
    back, undone = module.apply(params, y, method="inverse")
    assert np.allclose(back, x, atol=1e-6)
    assert np.allclose(logdet, -undone)

    def one(flat: jax.Array) -> jax.Array:
        return module.apply(params, flat.reshape(1, 3, 4, 5), method="forward")[0].ravel()

    jacobian = jax.jacfwd(one)(x[0].ravel())
    assert np.allclose(logdet[0], np.linalg.slogdet(jacobian)[1], atol=1e-4)
