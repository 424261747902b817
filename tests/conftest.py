"""Shared by all tests: strict JAX on simulated devices, and compiling quickly."""

import gc
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hub_server
import hypothesis  # noqa: F401  before objects are frozen, among which it looks for trio's
import jax
import pytest

from zmar_jax.runtime import compilation

jax.config.update("jax_numpy_rank_promotion", "raise")

# tracing makes many small objects that stay: Python would look through all of them again and again
gc.freeze()
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _compile_quickly(tmp_path_factory: pytest.TempPathFactory):
    """Small sizes compile for longer than they run: fewer passes, and each program once.

    The processes of a run share their programs. With `JAX_COMPILATION_CACHE_DIR` so do several
    runs, as those of .ci/run.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(shared / "programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "LLVM_LEVEL", 0)
        # also for the processes that tests start
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        jax.config.update("jax_compilation_cache_dir", folder)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests may have an end: `ZMAR_JAX_SLOW_UNTIL`, in seconds since 1970, as in .ci/run."""
    end = float(os.environ.get("ZMAR_JAX_SLOW_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > end:
        pytest.skip("no time is left for slow tests")


USERS_LEVEL = compilation.LLVM_LEVEL


@pytest.fixture
def as_users_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the options that users get."""
    monkeypatch.setattr(compilation, "LLVM_LEVEL", USERS_LEVEL)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Code of compiled programs takes mappings of memory, of which a process may have 65 530."""
    yield
    jax.clear_caches()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk that can fill up needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.Hub]:
    """A stand-in, in the place of the Hugging Face Hub, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield running


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium, by selenium; its console is `get_log("browser")`."""
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()
