"""Products over the pixels of each image, and of each pixel with a matrix of its image.

A CPU wants two axes; on a TPU pixels that are brought into one axis are copied.
"""

import jax
import jax.numpy as jnp

from zmar_jax.ops import HIGHEST, by_platform, wide

Array = jax.Array


def gram(q: Array, k: Array) -> Array:
    """q^T k over the pixels of each image: [B, H, W, I], [B, H, W, J] -> [B, I, J], float32 at
    least."""
    return by_platform(q, k, tpu=_gram, default=_gram_of_rows)


def _gram(q: Array, k: Array) -> Array:
    return jnp.einsum(
        "bhwi,bhwj->bij", q, k, precision=HIGHEST, preferred_element_type=wide(q.dtype)
    )


def _gram_of_rows(q: Array, k: Array) -> Array:
    q, k = (a.reshape(len(a), -1, a.shape[-1]) for a in (q, k))
    wanted = wide(q.dtype)
    if q.shape[0] == 1:  # the gradient of a batch of one transposes pixels on CPU
        product = jnp.matmul(q[0].T, k[0], precision=HIGHEST, preferred_element_type=wanted)
        return product[None]
    return jnp.matmul(q.mT, k, precision=HIGHEST, preferred_element_type=wanted)


@jax.custom_vjp
def gram_of(x: Array) -> Array:
    """x^T x over the pixels of each image: [B, H, W, C] -> [B, C, C], float32 at least.

    Its gradient is one product."""
    return gram(x, x)


def _gram_of_bwd(x: Array, dy: Array) -> tuple[Array]:
    return (mix_channels(x, (dy + dy.mT).astype(x.dtype)),)


gram_of.defvjp(lambda x: (gram_of(x), x), _gram_of_bwd)


def mix_channels(x: Array, mixer: Array) -> Array:
    """Each pixel times its image's matrix: [B, H, W, I] with [B, I, J] -> [B, H, W, J]."""
    return by_platform(x, mixer, tpu=_mix_channels, default=_mix_channels_of_rows)


def _mix_channels(x: Array, mixer: Array) -> Array:
    return jnp.einsum("bhwi,bij->bhwj", x, mixer, precision=HIGHEST)


def _mix_channels_of_rows(x: Array, mixer: Array) -> Array:
    rows = x.reshape(len(x), -1, x.shape[-1])
    return jnp.matmul(rows, mixer, precision=HIGHEST).reshape(*x.shape[:-1], -1)
