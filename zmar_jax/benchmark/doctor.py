"""What a bug report needs: what is installed and there, and whether each part works."""

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zmar_jax.runtime import compilation, memory

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets"),
    *("numpy", "ml_dtypes", "pillow", "opencv-python-headless", "safetensors"),
)
EXTRAS = ("libtpu", "jax-cuda12-plugin", "torch", "huggingface_hub", "flatbuffers")
"""What some commands need, and may be missing."""


class Result(NamedTuple):
    """How a check went."""

    name: str
    passed: bool
    seconds: float
    said: str
    """What it found, or the error in one line."""


def facts() -> dict[str, str]:
    """Versions, devices, memory and cache, by name."""
    there = {"zmar-jax": _version("zmar-jax") or "not installed, run from its folder"}
    there["at"] = str(Path(__file__).parents[1])
    there |= {"Python": platform.python_version(), "system": platform.platform()}
    there |= {name: _version(name) or "MISSING" for name in PACKAGES}
    there |= {name: version for name in EXTRAS if (version := _version(name))}
    kinds = [f"{device.platform} {device.device_kind}" for device in jax.local_devices()]
    there["devices"] = ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))
    there["processes"] = str(jax.process_count())
    there["CPU cores"] = str(os.cpu_count())
    there["free memory"] = f"{memory.free() / memory.GIB:.1f} GiB"
    cache = compilation.enable_cache()
    there["cache"] = f"{cache}, {_size(cache) / 2**20:.0f} MiB" if cache else "none"
    wanted = ("JAX_", "XLA_", "ZMAR_JAX_", "CUDA_VISIBLE", "TPU_", "LIBTPU_", "HF_ENDPOINT")
    shown = {name: value for name, value in os.environ.items() if name.startswith(wanted)}
    return there | {name: shown[name] for name in sorted(shown)}


def check(name: str, run: Callable[[], str]) -> Result:
    """Runs a check. Whatever it raises is its result: the others are to be run, too."""
    start = time.perf_counter()
    try:
        passed, said = True, run()
    except Exception as e:
        passed, said = False, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
    return Result(name, passed, time.perf_counter() - start, said)


def _devices() -> str:
    """Each device multiplies two matrices."""
    ones = np.ones((256, 256), np.float32)
    for device in jax.local_devices():
        product = jax.device_put(ones, device) @ jax.device_put(ones, device)
        if not np.array_equal(product, 256 * ones):
            raise ValueError(f"{device} multiplies wrongly")
    return f"{len(jax.local_devices())} of {len(jax.local_devices())} multiply rightly"


def _pictures() -> str:
    """A picture is written and read."""
    from zmar_jax.imaging.images import Photo, read_photo, write_photo

    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_photo(Path(folder) / "a.png", Photo(pixels))
        if not np.array_equal(read_photo(Path(folder) / "a.png").rgb, pixels):
            raise ValueError("a PNG did not come back as it was written")
    return "a PNG is written and read"


def _weights() -> str:
    """The bundled weights are whole."""
    from zmar_jax.weights import load_weights

    weights = load_weights()
    return f"bundled, checksum {weights.checksum}, {weights.tensors} tensors"


def _restoring() -> str:
    """A small model restores a picture."""
    from zmar_jax.benchmark.restore import random_restorer
    from zmar_jax.config import ModelConfig

    small = ModelConfig(
        dim=2, blocks=(1, 1, 1), refinement_blocks=1, heads=(1, 1, 1), flow_steps=1, flow_hidden=4
    )
    pixels = np.random.default_rng(0).integers(0, 40, (16, 24, 3), np.uint8)
    restored = random_restorer(small)(pixels)
    if restored.shape != pixels.shape:
        raise ValueError(f"a picture {pixels.shape} became {restored.shape}")
    return "a picture of 24x16 by a tiny model"


def _cache() -> str:
    """The cache can be written."""
    folder = compilation.enable_cache()
    if folder is None:
        raise OSError(f"cannot be written; name another folder in ${compilation.CACHE_VARIABLE}")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return str(folder)


CHECKS: dict[str, Callable[[], str]] = {
    "devices": _devices,
    "pictures": _pictures,
    "weights": _weights,
    "cache": _cache,
    "restoring": _restoring,
}
"""By name; each returns what it found, or raises."""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
