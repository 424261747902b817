"""The training objective and its units (model.md section 5)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def dequantize(gt: Array, noise: Array, quantization: int) -> Array:
    """x = gt + noise / quantization, noise = u - 0.5 with u uniform in [0, 1)."""
    return gt + noise / quantization


def standard_normal_logprob(z: Array) -> Array:
    """Sum of log N(z; 0, I) over all but the first axis, nats: [B, ...] -> [B]."""
    axes = tuple(range(1, z.ndim))
    count = math.prod(z.shape[1:])
    return -0.5 * jnp.sum(jnp.square(z), axes) - 0.5 * count * math.log(2 * math.pi)


def nll_bits_per_pixel(z: Array, logdet: Array, pixels: int, quantization: int) -> Array:
    """The release's negative log-likelihood, bits per *pixel* (model.md section 5).

    The dequantisation is counted once a pixel, not once a channel, as in the release.

    Args:
      z: latent [B, h, w, C]; logdet: the flow's, nats [B]; pixels: H * W of the image.

    Returns:
      float32 [B].
    """
    objective = logdet - math.log(quantization) * pixels + standard_normal_logprob(z)
    return -objective / (math.log(2) * pixels)


def bits_per_dim(nll: Any, quantization: int) -> Any:
    """Bits per dimension of 8-bit data, from `nll_bits_per_pixel`; lower is better.

    The flow's density of the image in levels of 0 to 255, per pixel and channel: each of the three
    channels counts its scale, log2(255), where the release counts log2(quantization) once a pixel.
    It compares with other models' bits per dimension, but it is the noisy image's: noise of
    8 levels (quantization 32) makes it no bound for the image without noise.
    """
    return (nll - math.log2(quantization)) / 3 + math.log2(255)


def l1(gt: Array, restored: Array) -> Array:
    """Mean |gt - clip(restored, 0, 1)| over the values of `restored` that are not NaN; scalar."""
    valid = ~jnp.isnan(restored)
    error = jnp.abs(gt - jnp.clip(jnp.where(valid, restored, gt), 0, 1))
    return error.sum() / jnp.maximum(valid.sum(), 1)
