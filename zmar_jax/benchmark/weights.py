"""Random weights of sane sizes, in the release's keys."""

import zlib

import numpy as np

from zmar_jax import torch_port
from zmar_jax.config import ModelConfig


def random_state_dict(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Every published tensor, a function of its key, shape and `seed` (docs/model.md section 10).

    The golden files were made with them, by the release.
    """
    return {e.key: _tensor(e.key, e.shape, seed) for e in torch_port.key_table(config)}


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
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
