"""The training objective and its units (SPEC section 5)."""

import math

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
    """The release's negative log-likelihood, bits per *pixel* (SPEC section 5).

    The dequantisation is counted once a pixel, not once a channel, as in the release.

    Args:
      z: latent [B, h, w, C]; logdet: the flow's, nats [B]; pixels: H * W of the image.

    Returns:
      float32 [B].
    """
    objective = logdet - math.log(quantization) * pixels + standard_normal_logprob(z)
    return -objective / (math.log(2) * pixels)
