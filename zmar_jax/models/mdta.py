"""Channel attention: every pixel times a matrix that sums over all pixels choose."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.flow.initializers import FanIn, ones
from zmar_jax.kernels import conv1_dw3, gram, gram_of, mix_channels, tpu
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
        apart, together = (functools.partial(f, window) for f in (sums_apart, sums_together))
        forms = {"tpu": together} if tpu.has_products_to_spare(x.dtype) else {}
        products, *squares = ops.by_platform(x, self.qkv, self.taps, **forms, default=apart)
        # the heads' own alone would be thin products of transposed arrays
        products = products.reshape(b, h, d // h, h, d // h)
        products = jnp.moveaxis(jnp.diagonal(products, axis1=1, axis2=3), -1, 1)
        qq, kk = (a.reshape(b, h, d // h, 1) for a in squares)
        return products, qq, kk

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
        v = _features(x, self.qkv, self.taps, 2 * self.width, self.width)
        return mix_channels(v, mixer.astype(v.dtype))


def sums_apart(window: Window, x: Array, kernel: Array, taps: Array) -> Sums:
    """q^T k of all heads with all, [B, d, d], and the sums of squares of q and of k, [B, d]."""
    d = x.shape[-1]
    q, k = (window.counted(_features(x, kernel, taps, i * d, d)) for i in (0, 1))
    return gram(q, k), ops.square_sum(q), ops.square_sum(k)


def sums_together(window: Window, x: Array, kernel: Array, taps: Array) -> Sums:
    """The same from one product, of q beside k with itself: more arithmetic in fewer passes."""
    d = x.shape[-1]
    sums = gram_of(window.counted(_features(x, kernel, taps, 0, 2 * d)))
    squares = jnp.diagonal(sums, axis1=1, axis2=2)
    return sums[:, :d, d:], squares[:, :d], squares[:, d:]


def _features(x: Array, kernel: Array, taps: Array, first: int, width: int) -> Array:
    """`width` of the channels of q, k and v, from `first` on: [B, H, W, width]."""
    mine = slice(first, first + width)
    return conv1_dw3(x, kernel[:, mine], taps[..., mine])
