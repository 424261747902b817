"""Golden files of the PyTorch release (model.md section 10) and the weights they were made with."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax import torch_port
from zmar_jax.benchmark.weights import random_state_dict
from zmar_jax.config import PRESETS

FOLDER = Path(__file__).parent / "golden"
CASES = {"tiny_32x48": ("tiny", 0), "tiny_40x24": ("tiny", 1)}
FULL_CASES = {"full_64x96": ("zmar_snflow", 0), "full_160x160": ("zmar_snflow", 2)}


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


def state_dict(preset: str, seed: int) -> dict[str, np.ndarray]:
    return random_state_dict(PRESETS[preset], seed)


@functools.cache
def params(preset: str, seed: int) -> Any:
    return torch_port.to_params(state_dict(preset, seed), PRESETS[preset])
