"""Golden files of the PyTorch release (SPEC section 10) and the weights they were made with."""

import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zmar_jax import torch_port
from zmar_jax.config import PRESETS
from zmar_jax.torch_port.keys import key_table

FOLDER = Path(__file__).parent / "golden"
CASES = {"tiny_32x48": ("tiny", 0), "tiny_40x24": ("tiny", 1)}
FULL_CASES = {"full_64x96": ("zmar_snflow", 0), "full_160x160": ("zmar_snflow", 2)}

# Small sizes compile for longer than they run: a fifth of the time without LLVM's passes.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


def jit(function: Callable[..., Any]) -> Any:
    """`jax.jit` that compiles quickly on a CPU."""
    return jax.jit(function, compiler_options=QUICK if jax.default_backend() == "cpu" else None)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def keys(name: str) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Every published key in order, with its shape and whether the objective touches it."""
    table = json.loads((FOLDER / f"keys_{name}.json").read_text())
    return {key: (tuple(shape), used) for key, (shape, used) in table.items()}


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """SPEC section 10: any weight as a function of (key, shape, seed)."""
    rs = np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % 2**32)
    n = rs.standard_normal(shape)
    if key.endswith("invconv.weight"):
        v = rs.standard_normal(shape[0])
        w = np.roll(np.eye(shape[0]) - 2 * np.outer(v, v) / (v @ v), shape[0] // 2, axis=0)
        out = w * np.exp(0.1 * rs.standard_normal(shape[0]))[None, :]
    elif key.endswith(("actnorm.bias", "actnorm.logs")):
        offset = 0.22 if key.endswith("logs") and ".affine." not in key else 0.0
        out = 0.05 * n + offset
    elif key.endswith("body.weight"):
        out = 1 + 0.1 * n
    elif key.endswith("body.bias"):
        out = 0.1 * n
    elif "temperature" in key:
        out = 1.5 + 0.3 * n
    elif key.endswith((".logs", ".bias")):
        out = 0.05 * n
    else:
        gain = 0.1 if ".affine." in key and key.endswith(".4.weight") else 1.0
        out = gain * n / np.sqrt(int(np.prod(shape[1:])))
    return out.astype(np.float32)


def state_dict(preset: str, seed: int) -> dict[str, np.ndarray]:
    return {e.key: tensor(e.key, e.shape, seed) for e in key_table(PRESETS[preset])}


@functools.cache
def params(preset: str, seed: int) -> Any:
    return torch_port.to_params(state_dict(preset, seed), PRESETS[preset])
