"""How the project's programs are compiled: options that matter on CPU, and the cache on disk."""

import ctypes
import functools
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from zmar_jax.files.places import CACHE_VARIABLE
from zmar_jax.files.places import cache_folder as usual_folder

_O0, _O1 = 9, 19
"""Levels of XLA's EffortLevel."""
LLVM_LEVEL = 2
"""LLVM's optimization on CPU, 0 to 3. The third compiles for a third longer and gains nothing; 0
compiles in a fifth of the time, for what is small."""
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_experimental_ynn_fusion_type": "",
}
NO_TRITON = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_disable_hlo_passes": "triton-softmax-rewriter,fusion-block-level-rewriter",
}
"""Keeps XLA from writing Triton kernels for a GPU."""
STRIPE_BYTES = 24 << 20
"""Bytes of a stripe of one image in the encoder's wide layers on a CPU, so that it stays near the
caches. A stripe of the flow has eight times as many."""
ACCELERATOR_STRIPE_BYTES = 256 << 20
"""Bytes of a stripe of one image on an accelerator. It bounds what large pictures take."""
TRAINING_STRIPE_BYTES = 7 << 20
"""Bytes of a stripe of one image in gradients, which work on more arrays at once."""


def jit(fn: Callable[..., Any], platform: str | None = None, **kwargs: Any) -> Any:
    """`jax.jit` with the options that the model wants on `platform`, else on the default backend.

    XLA's newer CPU fusion emitters (jaxlib 0.10) compile a sum of shifted slices, which a
    depthwise convolution is, to scalar code: 0.36 s instead of 0.08 s for 400 rows of 600 pixels
    and 512 channels on 2 cores. Its YNNPACK is a third slower than Eigen at
    3x3 convolutions. TPU and GPU are left alone.
    """
    options = cpu_options() if (platform or jax.default_backend()) == "cpu" else {}
    return jax.jit(fn, compiler_options=options, **kwargs)


def cpu_options() -> dict[str, Any]:
    """Those of CPU_OPTIONS that this XLA has, and LLVM_LEVEL."""
    wanted = CPU_OPTIONS | {"xla_backend_optimization_level": LLVM_LEVEL}
    return {name: value for name, value in wanted.items() if known(name, value)}


def effort_options(effort: float) -> dict[str, Any]:
    """What asks XLA for less than its usual effort at making a program fast, on any platform.

    jax 0.12 has dropped efforts for levels; O0 and -1 compile to the same program.

    Args:
      effort: from -1, the least, to 0, the usual.
    """
    return {"optimization_level": _O0 if effort <= -0.5 else _O1} if effort else {}


def gpu_options(capability: int, triton: bool = True) -> dict[str, Any]:
    """What compiling for a GPU that is not there takes; of these, those that this XLA has.

    Nothing can be timed, so each kernel has the form that XLA takes without trials. XLA's model of
    each kernel's time is written into the program's text.

    Args:
      capability: the GPU's major compute capability. For those before 9, XLA lacks the table of one
        of its two models, which is then left out.
      triton: whether XLA may make Triton kernels of products, softmaxes and reductions. Without
        them the first are cuBLAS's, the others loops.
    """
    wanted: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_collect_cost_model_stats": True}
    if capability < 9:
        wanted["xla_gpu_enable_analytical_sol_latency_estimator"] = False
    if not triton:
        wanted |= NO_TRITON
    return {name: value for name, value in wanted.items() if known(name, value)}


@functools.cache
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


def enable_cache() -> Path | None:
    """Keeps compiled programs in `cache_folder`, so that a second run starts fast."""
    folder = cache_folder()
    if folder is not None and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def cache_folder() -> Path | None:
    """Where compiled programs are kept; None, and a warning, where it cannot be written.

    It is `$ZMAR_JAX_CACHE`, else `~/.cache/zmar_jax`; a cache that is configured already
    (`JAX_COMPILATION_CACHE_DIR`) is left as it is.
    """
    if configured := jax.config.values["jax_compilation_cache_dir"]:
        return Path(configured)
    folder = usual_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        warnings.warn(
            f"{folder}: compiled programs cannot be kept here ({e.strerror}), so that every start "
            f"compiles again; name another folder in ${CACHE_VARIABLE}",
            stacklevel=2,
        )
        return None
    return folder
