"""What `pip install` gives, in an empty folder; and scripts/, started from anywhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from zmar_jax import __version__
from zmar_jax.config import config_names

ROOT = Path(__file__).parents[1]
COMMANDS = [path for path in sorted(ROOT.glob("scripts/*.py")) if "__main__" in path.read_text()]


def run(folder: Path, *command: str | Path, code: int = 0) -> str:
    """What the command prints in `folder`, where nothing leads to this clone."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


HOW = ["wheel", pytest.param("editable", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=HOW)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a virtual environment with a copy of this code; all else is the tests' own."""
    folder = tmp_path_factory.mktemp(request.param)
    source, venv = folder / "source", folder / "venv"
    for name in ("zmar_jax", "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    others = folder / "others"
    others.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        # not this project, which the tests' environment may have, too
        if "zmar_jax" not in path.name:
            (others / path.name).symlink_to(path)
    run(folder, sys.executable, "-m", "venv", "--without-pip", venv)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(others))
    pip = (sys.executable, "-m", "pip", "-q", "--python", venv / "bin/python", "install")
    alone = ("--no-deps", "--no-index")
    if request.param == "wheel":
        run(source, sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
        run(folder, *pip, *alone, *folder.glob("*.whl"))
    else:
        run(folder, *pip, *alone, "--no-build-isolation", "-e", source)
    return venv / "bin"


def test_it_tells_its_version(installed: Path, tmp_path: Path) -> None:
    said = run(tmp_path, installed / "zmar-jax", "--version")
    assert said.startswith(f"zmar-jax {__version__}, jax ")
    assert run(tmp_path, installed / "python", "-m", "zmar_jax", "--version") == said


def test_it_has_all_configurations_and_the_weights(installed: Path, tmp_path: Path) -> None:
    script = (
        "import zmar_jax, zmar_jax.config as c, zmar_jax.weights as w\n"
        "print(zmar_jax.__file__, w.BUNDLED.is_file())\n"
        "print(*(name for name in c.config_names() if c.load_config(name)))"
    )
    first, names = run(tmp_path, installed / "python", "-c", script).splitlines()
    assert Path(first.split()[0]).is_relative_to(installed.parents[1])
    assert first.endswith("True")
    assert names.split() == config_names()


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_it_restores_and_evaluates(installed: Path, tmp_path: Path) -> None:
    assert "1 of 1 restored" in run(tmp_path, installed / "zmar-jax", "restore")
    said = run(tmp_path, installed / "zmar-jax", "evaluate", "--data", "builtin")
    assert "evaluation/report.html" in said
    assert (tmp_path / "evaluation" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_scripts_start_anywhere(script: Path, tmp_path: Path) -> None:
    usage = run(tmp_path, sys.executable, script, "--help").splitlines()[0]
    assert usage.startswith(f"usage: {script}")
