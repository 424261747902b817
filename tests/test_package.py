"""What goes to PyPI: the sdist and the wheel, their description, the types that others see."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from zmar_jax import __version__

ROOT = Path(__file__).parents[1]


def tool(name: str) -> str:
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'zmar-jax[dev]'")
    return found


def run(*command: str | Path, cwd: Path, code: int | None = 0, **variables: str) -> str:
    env = os.environ | variables
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".git", "build", "golden")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    run(*command, cwd=source, PYTHONPATH="")
    return folder


@pytest.mark.slow
def test_sdist_and_wheel_are_fit_for_pypi(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"zmar_jax-{__version__}-py3-none-any.whl"
    run(tool("twine"), "check", "--strict", wheel, sdist, cwd=built)
    run(tool("check-wheel-contents"), wheel, cwd=built)
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {"zmar_jax/py.typed", "zmar_jax/configs/night.yaml", "zmar_jax/hub.py"} <= packed
    assert {f"zmar_jax/demo/page/{name}" for name in ("index.html", "page.js", "view.js")} <= packed
    assert not any(name.startswith("tests/") for name in packed)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "zmar_jax/weights/nano.safetensors"} <= names
    assert not any(name.startswith("tests/") for name in names)


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license"} <= citation.keys()
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.slow
def test_types_are_complete(tmp_path: Path) -> None:
    """Of the public names, as pyright counts them for who uses the package."""
    # where it is run from it finds nothing; other packages, too, must be on the path
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    command = (tool("pyright"), "--verifytypes", "zmar_jax", "--ignoreexternal", "--outputjson")
    told = json.loads(run(*command, cwd=tmp_path, code=None, PYTHONPATH=path))
    assert told["typeCompleteness"]["completenessScore"] > 0.95
