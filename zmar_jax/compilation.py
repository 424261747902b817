"""How the project's programs are compiled: options that matter on CPU, and the cache on disk."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

CACHE_VARIABLE = "ZMAR_JAX_CACHE"
CPU_OPTIONS = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_backend_optimization_level": 2,
}
STRIPE_BYTES = 24 << 20
"""What the encoder's wide layers work on at once on CPU, near the caches; the flow's eight times
that."""
ACCELERATOR_STRIPE_BYTES = 256 << 20
"""The same of batches on an accelerator, to bound what large pictures take."""
TRAINING_STRIPE_BYTES = 7 << 20
"""The same for gradients, which have more arrays at work at once."""


def jit(fn: Callable[..., Any], platform: str | None = None, **kwargs: Any) -> Any:
    """`jax.jit` with the options that the model wants on `platform`, else on the default backend.

    XLA's newer CPU fusion emitters (jaxlib 0.10) compile a sum of shifted slices, which a
    depthwise convolution is, to scalar code: 0.36 s instead of 0.08 s for 400 rows of 600 pixels
    and 512 channels on 2 cores. Its YNNPACK is a third slower than Eigen at
    3x3 convolutions. LLVM's third level compiles for a third longer and gains nothing.
    TPU and GPU are left alone.
    """
    return jax.jit(fn, compiler_options=_options(platform or jax.default_backend()), **kwargs)


@functools.cache
def _options(backend: str) -> dict[str, Any]:
    return cpu_options() if backend == "cpu" else {}


def cpu_options() -> dict[str, Any]:
    """Those of CPU_OPTIONS that this XLA has."""
    return {name: value for name, value in CPU_OPTIONS.items() if known(name, value)}


def known(option: str, value: Any) -> bool:
    """Whether this XLA has the compiler option; where it has not, its own default will do."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def stripe_bytes(platform: str | None = None, training: bool = False) -> int | None:
    """What `ZmarSNFlow(stripe_bytes=...)` is best set to on `platform`, or the default backend.

    `memory.choose` knows better for a picture alone.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None if training else ACCELERATOR_STRIPE_BYTES
    return TRAINING_STRIPE_BYTES if training else STRIPE_BYTES


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc.

    After compiling the training step it would keep half a GiB.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def enable_cache() -> Path:
    """Keeps compiled programs on disk, so that a second run starts fast.

    In `$ZMAR_JAX_CACHE`, else `~/.cache/zmar_jax`; a cache that is configured already
    (`JAX_COMPILATION_CACHE_DIR`) is left as it is.
    """
    if configured := jax.config.values["jax_compilation_cache_dir"]:
        return Path(configured)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "zmar_jax")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
