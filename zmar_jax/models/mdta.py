"""Channel attention: every pixel times a matrix that sums over all pixels choose."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.flow.initializers import FanIn, ones
from zmar_jax.kernels import conv1, dw3
from zmar_jax.tiling.rows import Window

Array = jax.Array
Sums = tuple[Array, Array, Array]


class MDTA(nn.Module):
    """Channel attention (model.md section 2, MDTA), in two passes over the pixels.

    The first pass is `sums`; `mixer` makes a matrix of them; the second pass, the call, applies it.
    `Block` runs the passes over the whole image, stripes or shares alike. Another attention over
    channels has these three methods; x is normalised and padded: [B, H + 2, W + 2, d] by `pad1`.
    Its `sums` may be any tree of arrays: they are added over stripes and devices, so what divides
    by the number of pixels must sum that, too.

    The norms divide the d/heads x d/heads Gram matrix instead of the pixels, and the attention
    is composed with `project_out` into one d x d matrix per image. So the first pass needs q and k
    only for sums over pixels, and the second applies that matrix to v.
    """

    width: int
    heads: int

    def setup(self) -> None:
        d = self.width
        self.temperature: Array = self.param("temperature", ones, (self.heads,))
        self.qkv: Array = self.param("qkv", FanIn(), (d, 3 * d))
        self.taps: Array = self.param("qkv_dwconv", FanIn(), (3, 3, 1, 3 * d))
        self.out: Array = self.param("project_out", FanIn(), (d, d))

    def sums(self, x: Array, window: Window) -> Sums:
        """q k^T and the squared norms of q's and k's rows, over pixels, float32."""
        b, d, h = x.shape[0], self.width, self.heads
        q, k = (window.counted(self._features(x, part)) for part in (0, 1))
        qq, kk = (ops.square_sum(a).reshape(b, h, d // h, 1) for a in (q, k))
        # of all heads with all: their own are thin products of transposed arrays otherwise
        gram = ops.gram(q.reshape(b, -1, d), k.reshape(b, -1, d)).reshape(b, h, d // h, h, d // h)
        gram = jnp.moveaxis(jnp.diagonal(gram, axis1=1, axis2=3), -1, 1)
        return gram, qq, kk

    def mixer(self, sums: Sums) -> Array:
        """What to multiply v with, [B, d, d], from the sums over all pixels."""
        gram, qq, kk = sums
        # at least 1e-12 each; of the squares, as the root of 0 has no gradient
        norms = jnp.sqrt(jnp.maximum(qq, 1e-24)) * jnp.sqrt(jnp.maximum(kk, 1e-24)).mT
        attention = nn.softmax(gram / norms * self.temperature.reshape(1, -1, 1, 1))
        out = self.out.reshape(self.heads, -1, self.width)
        mixer = jnp.einsum("bhij,hio->bhjo", attention, out, precision=ops.HIGHEST)
        return mixer.reshape(-1, self.width, self.width)

    def __call__(self, x: Array, mixer: Array) -> Array:
        """v of x times the mixer: [B, H, W, d]."""
        v = self._features(x, 2)
        flat = v.reshape(v.shape[0], -1, self.width)
        return jnp.matmul(flat, mixer.astype(v.dtype), precision=ops.HIGHEST).reshape(v.shape)

    def _features(self, x: Array, part: int) -> Array:
        """q, k or v (part 0, 1 or 2), [B, H, W, d]."""
        mine = slice(part * self.width, (part + 1) * self.width)
        return dw3(conv1(x, self.qkv[:, mine]), self.taps[..., mine])
