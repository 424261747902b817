"""How a level's steps read its condition: by convolutions that are done once for all steps."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from zmar_jax import ops
from zmar_jax.flow.initializers import Normal
from zmar_jax.kernels import conv3

Array = jax.Array


class Factored(NamedTuple):
    """A condition [B, H, W, O + J] as factors: its first O channels are a product to be made.

    The convolutions that read it are linear: their kernels take the matrix, and the pixels keep
    fewer channels.
    """

    features: Array
    """[B, H, W, I + J]; the condition is features[..., :I] @ matrix beside features[..., I:]."""
    matrix: Array
    """[I, O]."""


class Projection(flax.struct.PyTreeNode):
    """A level's condition and the 3x3 convolutions by which its K steps read it."""

    features: Array
    """[B, H, W, F]."""
    kernel: Array
    """[3, 3, F, K, D]; one step's is [3, 3, F, D]."""

    def step(self, i: Array) -> "Projection":
        """Step i's part."""
        return self.replace(kernel=lax.dynamic_index_in_dim(self.kernel, i, 3, keepdims=False))


class ConditionProjection(nn.Module):
    """The kernels of all steps of a level, parameter `kernel` [3, 3, Cc, K, D]."""

    steps: int
    width: int
    """D: what one step reads."""

    @nn.compact
    def __call__(self, cond: Array | Factored) -> Projection:
        """cond [B, H, W, Cc]."""
        features, matrix = cond if isinstance(cond, Factored) else (cond, None)
        inner, outer = (0, 0) if matrix is None else matrix.shape
        shape = (3, 3, features.shape[-1] - inner + outer, self.steps, self.width)
        kernel = self.param("kernel", Normal(), shape)
        if matrix is None:
            return Projection(features, kernel)
        first = jnp.einsum("io,hwokc->hwikc", matrix, kernel[:, :, :outer], precision=ops.HIGHEST)
        return Projection(features, jnp.concatenate([first, kernel[:, :, outer:]], 2))


def project(cond: Projection, policy: str) -> Array:
    """What one step reads: features [B, H, W, F], kernel [3, 3, F, D] -> [B, H, W, D]."""
    return conv3(ops.hidden_cast(cond.features, policy), cond.kernel)


def project_all(cond: Projection, policy: str) -> Array:
    """What all steps read: [K, B, H, W, D]."""
    features = ops.hidden_cast(cond.features, policy)
    return ops.by_platform(features, cond.kernel, cpu=project_in_turn, default=project_together)


def project_together(features: Array, kernel: Array) -> Array:
    """[B, H, W, F] with [3, 3, F, K, D] -> [K, B, H, W, D], by one convolution."""
    h = conv3(features, kernel.reshape(*kernel.shape[:3], -1))
    return jnp.moveaxis(h.reshape(*features.shape[:3], *kernel.shape[3:]), 3, 0)


def project_in_turn(features: Array, kernel: Array) -> Array:
    """The same by K convolutions: a CPU's caches hold one step's kernel, and memory is spared."""
    return lax.map(lambda kernel: conv3(features, kernel), jnp.moveaxis(kernel, 3, 0))
