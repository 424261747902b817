"""Holds the directions in which the modules of zmar_jax may import each other."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("zmar_jax/**/*.py"))

LAYERS = (
    ("files",),
    ("config", "imaging"),
    ("ops",),
    ("kernels", "data"),
    ("tiling", "runtime"),
    ("flow",),
    ("models",),
    ("torch_port",),
    ("weights",),
    ("train", "restore", "hub"),
    ("evaluate", "deploy", "demo"),
    ("benchmark",),
    ("cli",),
    ("__main__", "moved"),
)
"""A module imports from the layers above its own and from its own package, nothing else."""
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
TORCH = "zmar_jax/torch_port/files.py"
"""The one file that may import torch, and only when it must."""


def violations(file: str, source: str) -> list[str]:
    """What `source` may not do as the module `file`, a path that begins with zmar_jax/."""
    path = PurePosixPath(file).with_suffix("")
    mine, package = path.parts[1], ".".join(path.parts[:-1])
    if mine == "__init__":
        return []
    if mine not in LAYER:
        return [f"{file}: place {mine} in LAYERS of {Path(__file__).name}"]
    found = []
    for line, name, when_loaded in _imports(ast.parse(source), package):
        problem = _inside(mine, name) or _outside(file, name, when_loaded)
        if problem:
            found.append(f"{file}:{line}: {problem}")
    return found


def _inside(mine: str, name: str) -> str | None:
    top, _, rest = name.partition(".")
    theirs = rest.partition(".")[0]
    if top != "zmar_jax" or theirs == mine:
        return None
    if theirs not in LAYER:
        return f"{name} is no module in LAYERS; import from the module that defines it"
    if LAYER[theirs] >= LAYER[mine]:
        return f"{mine} may not import {theirs}"
    return None


def _outside(file: str, name: str, when_loaded: bool) -> str | None:
    top = name.partition(".")[0]
    if top in ("torch", "tensorflow") and when_loaded:
        return f"{top} may not be imported at the top level"
    if top == "torch" and file != TORCH:
        return f"only {TORCH} may import torch"
    return None


def _imports(
    node: ast.AST, package: str, when_loaded: bool = True
) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether loading the module runs it, of every import under `node`."""
    for child in ast.iter_child_nodes(node):
        for name in _names(child, package):
            yield getattr(child, "lineno", 0), name, when_loaded
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, package, when_loaded and not deferred)


def _names(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            module = resolve_name("." * node.level + (node.module or ""), package)
            return [f"{module}.{alias.name}" for alias in node.names]
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [resolve_name(name, package)]
    return []


def test_directions() -> None:
    found = [v for file in FILES for v in violations(file, (ROOT / file).read_text("utf-8"))]
    assert not found


@pytest.mark.parametrize("room", [name for name in LAYER if (ROOT / "zmar_jax" / name).is_dir()])
def test_a_room_says_what_it_imports(room: str) -> None:
    """The last lines of the docstring of each folder list the rooms that its modules import."""
    found: set[str] = set()
    for file in (ROOT / "zmar_jax" / room).rglob("*.py"):
        package = ".".join(file.relative_to(ROOT).parent.parts)
        found |= {name for _, name, _ in _imports(ast.parse(file.read_text("utf-8")), package)}
    rooms = {name.split(".")[1] for name in found if name.startswith("zmar_jax.")} & set(LAYER)
    said = ast.get_docstring(ast.parse((ROOT / "zmar_jax" / room / "__init__.py").read_text()))
    expected = ", ".join(sorted(rooms - {room})) or "nothing of this project"
    assert " ".join((said or "").partition("Imports: ")[2].split()) == f"{expected}."


def test_the_walk_finds_the_package() -> None:
    assert {"zmar_jax/__init__.py", "zmar_jax/ops.py", "zmar_jax/flow/chain.py"} <= set(FILES)


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("ops", "import zmar_jax.flow", "ops may not import flow"),
        ("ops", "from zmar_jax import flow", "ops may not import flow"),
        ("ops", "from . import flow", "ops may not import flow"),
        ("ops", "from .flow.chain import FlowStep", "ops may not import flow"),
        ("ops", "def f():\n    import zmar_jax.flow", "ops may not import flow"),
        ("ops", "importlib.import_module('zmar_jax.flow')", "ops may not import flow"),
        ("ops", "import math, zmar_jax.cli", "ops may not import cli"),
        ("config", "from zmar_jax.ops import squeeze", "config may not import ops"),
        ("flow/chain", "from zmar_jax.models import snflow", "flow may not import models"),
        ("flow/chain", "from ..models import snflow", "flow may not import models"),
        ("flow/__init__", "from ..models import snflow", "flow may not import models"),
        ("data/degrade", "from zmar_jax.models import snflow", "data may not import models"),
        ("data/degrade", "from zmar_jax import tiling", "data may not import tiling"),
        ("imaging/metrics", "import zmar_jax.models.encoder", "imaging may not import models"),
        ("weights/run", "from zmar_jax.train import state", "weights may not import train"),
        ("torch_port/port", "import zmar_jax.weights", "torch_port may not import weights"),
        ("restore", "from zmar_jax.cli import main", "restore may not import cli"),
        ("train", "from zmar_jax import evaluate", "train may not import evaluate"),
        ("train", "import zmar_jax", "zmar_jax is no module in LAYERS"),
        ("train", "from zmar_jax import ModelConfig", "zmar_jax.ModelConfig is no module"),
        ("train", "from zmar_jax import *", "zmar_jax.* is no module in LAYERS"),
        ("train", "from .spare import part", "zmar_jax.spare.part is no module in LAYERS"),
        ("spare", "", "place spare in LAYERS of test_imports.py"),
        ("spare/part", "", "place spare in LAYERS of test_imports.py"),
        ("ops", "import torch", "torch may not be imported at the top level"),
        ("torch_port/files", "import torch.nn", "torch may not be imported at the top level"),
        ("torch_port/files", "class A:\n    from torch import nn", "torch may not be imported at"),
        ("torch_port/files", "try:\n    import torch\nfinally: ...", "torch may not be imported"),
        ("torch_port/port", "def f(): import torch", "only zmar_jax/torch_port/files.py may"),
        ("ops", "f = lambda: __import__('torch')", "only zmar_jax/torch_port/files.py may"),
        ("data/pipeline", "import tensorflow as tf", "tensorflow may not be imported at the top"),
    ],
)
def test_checker_catches(module: str, source: str, problem: str) -> None:
    (found,) = violations(f"zmar_jax/{module}.py", source)
    assert found.startswith(f"zmar_jax/{module}.py:")
    assert problem in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__", "from zmar_jax.restore import load_restorer"),
        ("config", "import dataclasses\nfrom collections.abc import Mapping"),
        ("flow/chain", "from zmar_jax import ops\nfrom .actnorm import ActNorm"),
        ("models/__init__", "from zmar_jax.models.snflow import SNFlow"),
        ("train", "from zmar_jax.runtime import compilation\nimport zmar_jax.data.pipeline"),
        ("cli", "def run():\n    from zmar_jax.train import fit"),
        ("torch_port/files", "def write():\n    import torch"),
        ("torch_port/files", "async def write():\n    importlib.import_module('torch')"),
        ("data/datasets", "import tensorflow_datasets\ndef f(): import tensorflow"),
        ("data/datasets", "import torch_like, tensorflowish\nload(import_module, name)"),
    ],
)
def test_checker_allows(module: str, source: str) -> None:
    assert violations(f"zmar_jax/{module}.py", source) == []


def test_checker_names_the_line() -> None:
    source = "import math\n\nfrom zmar_jax import models\n"
    expected = ["zmar_jax/flow/chain.py:3: flow may not import models"]
    assert violations("zmar_jax/flow/chain.py", source) == expected
