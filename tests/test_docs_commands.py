"""Every `zmar-jax` command on a page: parsed by the real command line, and cheap ones run."""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch_corpus
import tyro
from PIL import Image

from zmar_jax import cli
from zmar_jax.config import Config, load_config, override
from zmar_jax.data.sample import sample

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "zmar_jax/weights/README.md")
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def whole(page: Path) -> str:
    """A page's text, or the code of a notebook as one block of commands."""
    text = page.read_text("utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells).splitlines()
    quoted = re.findall(r'(?:^run\(|= )"(zmar-jax [^"]+)"', "\n".join(lines), re.M)
    return "```sh\n" + "\n".join(quoted) + "\n```\n"


def blocks(text: str) -> list[list[str]]:
    """The words of each command in a page's blocks of shell commands."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r" && | > ", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["zmar-jax"]:
                    found.append(words[1:])
    return found


def mentions(text: str) -> list[list[str]]:
    """The words of each command within a sentence or a table, which may leave things out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found = re.findall(r"`zmar-jax\s+([^`]+)`", prose)
    return [call.split() for call in found]


BLOCKS = [(page, call) for page in (*PAGES, NOTEBOOK) for call in blocks(whole(page))]


def names(value: Any) -> str | None:
    if isinstance(value, Path):
        return value.name
    return shlex.join(["zmar-jax", *value]) if isinstance(value, list) else None


@dataclasses.dataclass
class Call:
    """What the command line made of a command."""

    name: str
    options: dict[str, Any]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls of commands, none of which is run."""
    calls: list[Call] = []

    def record(name: str, command: Any) -> Any:
        @functools.wraps(command)
        def instead(*args: Any, **options: Any) -> None:
            calls.append(Call(name, inspect.signature(command).bind(*args, **options).arguments))

        return instead

    def watch(app: Any, before: str) -> None:
        for name, command in app._subcommands.items():  # tyro has no parsing alone
            if isinstance(command.target, tyro.extras.SubcommandApp):
                watch(command.target, f"{name} ")
            else:
                monkeypatch.setattr(command, "target", record(before + name, command.target))

    watch(cli.app, "")
    return calls


def test_pages_have_commands() -> None:
    assert len(BLOCKS) > 50
    assert {page.name for page, _ in BLOCKS} >= {"README.md", "tpu.md", "quickstart.ipynb"}
    text = (
        "a\n```sh\npip install . && zmar-jax restore \\\n  'a b'  # why\nls\n```\n`zmar-jax info`"
    )
    assert blocks(text) == [["restore", "a b"]]
    assert mentions(text) == [["info"]]


@pytest.mark.parametrize(("page", "call"), BLOCKS, ids=names)
def test_a_command_is_parsed(page: Path, call: list[str], parsed: list[Call], capsys) -> None:
    if call[0] in ("--version", "--tyro-print-completion"):
        return
    for scheme, package in {"gs://": "gcsfs", "s3://": "s3fs"}.items():
        if any(part.startswith(scheme) for part in call):
            pytest.importorskip(package)
    assert cli.main(call) == 0, capsys.readouterr().err
    (found,) = parsed
    assert found.name == " ".join(call[: len(found.name.split())])
    if found.name in ("train", "compile", "benchmark train", "benchmark data"):
        path = found.options.get("config")
        known = path is None or not path.suffix
        override(
            load_config(path) if path and known else Config(), found.options.get("settings", ())
        )


@pytest.mark.parametrize("call", [["train", "--config"], ["restore", "--bright", "2"], ["repair"]])
def test_a_wrong_command_is_not(call: list[str], parsed: list[Call], capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(call)
    assert not parsed


@pytest.fixture(scope="module")
def options() -> Any:
    """The options of a command, by its --help."""

    @functools.cache
    def of(command: str) -> set[str]:
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
        return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", said.getvalue()))

    return of


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_what_a_sentence_mentions_is_there(page: Path, options: Any) -> None:
    for call in mentions(page.read_text("utf-8")):
        if call[0].startswith("-"):
            continue
        two = call[:2] if call[0] == "benchmark" and len(call) > 1 else call[:1]
        known = options(" ".join(two))
        used = {word for word in call if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{page.name}: zmar-jax {' '.join(call)}"


LONG = {
    r"^train": "trains",
    r"^compile": "needs libtpu, or minutes: tests/test_compile.py",
    r"^benchmark|^export|^doctor": "minutes at published sizes; has tests of its own",
    r"hf:": "needs the Hub: tests/test_hub.py",
    r"^compare|\.pth$": "needs PyTorch: tests/test_parity.py, tests/test_torch_files.py",
    r"--devices|runs/|lol_v2_real|builtin|-c bundled|--self": "needs devices, a run, a benchmark",
    r"^(restore|convert \S+ photos\.safetensors)$|^restore pairs": "tests/test_install.py",
    r"^prepare": "needs a benchmark: tests/test_datasets.py",
    r"^evaluate --data photos/": "needs a run",
    r"gs://|s3://": "needs a bucket: tests/test_bucket_runs.py",
}


def cheap(call: list[str]) -> bool:
    return not any(re.search(pattern, shlex.join(call)) for pattern in LONG)


CHEAP = [page for page in PAGES if any(cheap(c) for p, c in BLOCKS if p == page)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages' commands read, small, and weights of a small model."""
    folder = tmp_path_factory.mktemp("files")
    state, storages = torch_corpus.state_of(golden.state_dict("tiny", 0))
    torch_corpus.put(folder, torch_corpus.pth(state, storages), "LOLv2_G.pth")
    assert cli.main(["convert", str(folder / "LOLv2_G.pth"), str(folder / "weights")]) == 0
    low, gt = (picture[-104:, -104:] for picture in sample())
    for name in ("low", "my_pairs/low", "photos", "night"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(low).save(folder / name / "a.png")
    Image.fromarray(sample()[0][-208:, -208:]).save(folder / "night" / "a.png")  # as NIQE needs
    for name in ("restored", "my_pairs/gt"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(gt).save(folder / name / "a.png")
    for name in ("dark.jpg", "night.tiff", "broken.png", "huge.png", "low.png"):
        Image.fromarray(low).save(folder / name)
    for name in ("coffee.png", "restored.png"):
        Image.fromarray(gt).save(folder / name)
    Image.fromarray((low == 0).all(-1)).save(folder / "broken_mask.png")
    return folder


@pytest.fixture
def inside(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ZMAR_JAX_CACHE", os.environ.get("JAX_COMPILATION_CACHE_DIR", "cache"))
    return tmp_path / "here"


@pytest.mark.slow
@pytest.mark.parametrize("page", CHEAP, ids=names)
def test_cheap_commands_run(page: Path, inside: Path, capsys) -> None:
    for _, call in (found for found in BLOCKS if found[0] == page and cheap(found[1])):
        shutil.rmtree("evaluation", ignore_errors=True)
        if call[0] == "convert":
            call = [*call, "--overwrite"]
        try:
            code = cli.main(call)
        except SystemExit as done:  # printing a completion
            code = done.code
        assert not code, shlex.join(call) + "\n" + capsys.readouterr().err
    assert np.asarray(Image.open("dark.jpg")).shape == (104, 104, 3)
