"""Shared by all tests: strict JAX on simulated devices, and compiling quickly."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import golden
import jax
import pytest

from zmar_jax import compilation

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compile_quickly():
    """Small sizes compile for longer than they run: fewer passes, and each program once."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        quick = {"cpu": golden.QUICK}
        patch.setattr(compilation, "_options", lambda backend: quick.get(backend, {}))
        # also for the processes that tests start
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        jax.config.update("jax_compilation_cache_dir", folder)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


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
