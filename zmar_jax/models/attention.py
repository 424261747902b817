"""The encoder's blocks: zero-element mask attention, channel attention, gated feed-forward.

The parameters are the published ones. What is linear is composed before it meets the pixels:
kernels are small and images are large.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.conv import conv1, conv3, dw3, pad1
from zmar_jax.rows import WHOLE, Rows, Wanted, function

Array = jax.Array

conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for a convolution: uniform within 1 / sqrt(fan_in)."""

HIGHEST = ops.HIGHEST
KEPT = "kept"
"""Names what gradients keep of a block in stripes: MDTA's sums, and x after ZMA."""


class LayerNorm(nn.Module):
    """Over channels, biased variance, statistics in float32 (SPEC section 2, LN)."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        y = ops.normalize(x.astype(ops.wide(x.dtype)), self.eps)
        return ops.affine(y, scale, bias).astype(x.dtype)


class ZMA(nn.Module):
    """Zero-element mask attention (SPEC section 2, ZMA).

    `conv1 -> conv3 -> last third` is linear, and so is `project_out`, which acts on channels
    while the cells mix positions: the whole layer is one conv3 d -> d and one mixing of cells.
    Parameter `qkv_dwconv` holds the published rows that make v; q and k are never used.
    """

    rows: Rows = WHOLE

    @nn.compact
    def __call__(self, x: Array, norm: Callable[[Array], Array], attention: Array) -> Array:
        """x [B, H, W, d], attention from `ops.cell_attention` -> [B, H, W, d], of norm(x)."""
        d = x.shape[-1]
        qkv = self.param("qkv", conv_init, (d, 3 * d))
        value = self.param("qkv_dwconv", conv_init, (3, 3, 3 * d, d))
        out = self.param("project_out", conv_init, (d, d))
        kernel = jnp.einsum("im,hwmv->hwiv", qkv, value, precision=HIGHEST)
        kernel = jnp.einsum("hwiv,vo->hwio", kernel, out, precision=HIGHEST)
        return self.rows.mix_cells(lambda x: conv3(norm(x), kernel), x, attention, 2 * d)


class MDTA(nn.Module):
    """Channel attention (SPEC section 2, MDTA), in two passes over the pixels.

    The norms divide the d/heads x d/heads Gram matrix instead of the pixels, and the attention
    is composed with `project_out` into one d x d matrix per image. So the first pass needs q and k
    only for sums over pixels, and the second applies that matrix to v.
    """

    width: int
    heads: int

    def setup(self):
        d = self.width
        self.temperature = self.param("temperature", nn.initializers.ones, (self.heads,))
        self.qkv = self.param("qkv", conv_init, (d, 3 * d))
        self.taps = self.param("qkv_dwconv", conv_init, (3, 3, 1, 3 * d))
        self.out = self.param("project_out", conv_init, (d, d))

    def features(self, x: Array, part: int) -> Array:
        """q, k or v (part 0, 1 or 2): x [B, H + 2, W + 2, d] from `pad1` -> [B, H, W, d]."""
        part_of = slice(part * self.width, (part + 1) * self.width)
        return dw3(conv1(x, self.qkv[:, part_of]), self.taps[..., part_of])

    def sums(self, q: Array, k: Array, wanted: Wanted) -> tuple[Array, Array, Array]:
        """q k^T and the squared norms of q's and k's rows, over pixels, float32.

        Args:
          q, k: [B, rows, W, d].
        """
        b, d, h = q.shape[0], self.width, self.heads
        q, k = map(wanted.counted, (q, k))
        qq, kk = (ops.square_sum(a).reshape(b, h, d // h, 1) for a in (q, k))
        # of all heads with all: their own are thin products of transposed arrays otherwise
        gram = ops.gram(q.reshape(b, -1, d), k.reshape(b, -1, d)).reshape(b, h, d // h, h, d // h)
        gram = jnp.moveaxis(jnp.diagonal(gram, axis1=1, axis2=3), -1, 1)
        return gram, qq, kk

    def mixer(self, gram: Array, qq: Array, kk: Array) -> Array:
        """What to multiply v with, [B, d, d], from the sums."""
        # at least 1e-12 each; of the squares, as the root of 0 has no gradient
        norms = jnp.sqrt(jnp.maximum(qq, 1e-24)) * jnp.sqrt(jnp.maximum(kk, 1e-24)).mT
        attention = nn.softmax(gram / norms * self.temperature.reshape(1, -1, 1, 1))
        out = self.out.reshape(self.heads, -1, self.width)
        mixer = jnp.einsum("bhij,hio->bhjo", attention, out, precision=HIGHEST)
        return mixer.reshape(-1, self.width, self.width)

    def __call__(self, v: Array, mixer: Array) -> Array:
        """v [B, H, W, d], mixer [B, d, d] -> [B, H, W, d]."""
        flat = v.reshape(v.shape[0], -1, self.width)
        return jnp.matmul(flat, mixer.astype(v.dtype), precision=HIGHEST).reshape(v.shape)


class GDFN(nn.Module):
    """Gated feed-forward with exact GELU (SPEC section 2, GDFN)."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H + 2, W + 2, d] from `pad1` -> [B, H, W, d]."""
        d = x.shape[-1]
        project_in = self.param("project_in", conv_init, (d, 2 * self.hidden))
        taps = self.param("dwconv", conv_init, (3, 3, 1, 2 * self.hidden))
        project_out = self.param("project_out", conv_init, (self.hidden, d))
        # hidden channels of zeros, which give gelu(0) * 0 = 0: vectors and matrix units want whole
        # sixteens, and products of 127 or 255 columns take up to twice as long on CPU
        pad = [(0, -self.hidden % 16)]
        # in halves, as the gradient of a split writes all channels again, slowly
        a, b = (
            dw3(
                conv1(x, jnp.pad(project_in[:, half], [(0, 0), *pad])),
                jnp.pad(taps[..., half], [(0, 0)] * 3 + pad),
            )
            for half in (slice(self.hidden), slice(self.hidden, None))
        )
        return conv1(ops.gelu(a) * b, jnp.pad(project_out, [*pad, (0, 0)]))


class Block(nn.Module):
    """A plain block, or a masked one where `attention` is given (SPEC section 2).

    A masked block's ZMA and MDTA share `norm1`. Every pass reads x and normalises it anew: nothing
    wider than x is ever whole where `rows` are stripes.
    """

    config: ModelConfig
    width: int
    heads: int
    rows: Rows = WHOLE

    def setup(self):
        eps = self.config.layer_norm_eps
        self.norm1, self.norm2 = LayerNorm(eps), LayerNorm(eps)
        self.mask = ZMA(self.rows)
        self.attn = MDTA(self.width, self.heads)
        self.hidden = self.config.hidden(self.width)
        self.ffn = GDFN(self.hidden)

    def __call__(self, x: Array, attention: Array | None = None) -> tuple[Array, None]:
        """x [B, H, W, d] -> (x, None), the shape of a scan's body."""
        d = self.width
        if attention is not None:
            x = self._kept(x + self.mask(x, function(self.rows, self.norm1), attention))
        if self.rows.whole:  # gradients would keep twice what is computed in two passes
            normed = pad1(self.norm1(x))
            q, k, v = (self.attn.features(normed, part) for part in range(3))
            x = x + self.attn(v, self.attn.mixer(*self.attn.sums(q, k, Wanted(x.shape[1]))))
        else:
            mixer = self.attn.mixer(*self._pass("attend_sums", x, 2 * d)[1])
            x = self._pass("attend", x, d, mixer)[0]
        return self._pass("feed", x, 2 * self.hidden)[0], None

    def _pass(self, method: str, x: Array, width: int, *extra: Array) -> tuple[Any, Any]:
        fn = function(self.rows, self, method)
        in_place = method != "attend_sums"
        results = self.rows.apply(
            lambda wanted, x: fn(wanted, x, *extra), x, halo=1, width=width, in_place=in_place
        )
        return self._kept(results) if method == "attend_sums" else results

    def _kept(self, results: Any) -> Any:
        """Named for `Stage.remat`, as stripes do not need them to recompute what is wide."""
        return results if self.rows.whole else checkpoint_name(results, KEPT)

    def attend_sums(self, wanted: Wanted, x: Array) -> tuple[None, tuple[Array, ...]]:
        normed = wanted.pad1(self.norm1(x))
        q, k = (self.attn.features(normed, part) for part in (0, 1))
        return None, self.attn.sums(q, k, wanted)

    def attend(self, wanted: Wanted, x: Array, mixer: Array) -> tuple[Array, tuple[()]]:
        v = self.attn.features(wanted.pad1(self.norm1(x)), 2)
        return wanted.crop(x) + self.attn(v, mixer), ()

    def feed(self, wanted: Wanted, x: Array) -> tuple[Array, tuple[()]]:
        return wanted.crop(x) + self.ffn(wanted.pad1(self.norm2(x))), ()


class Stage(nn.Module):
    """`length` equal blocks in one scan over stacked parameters, so that one is compiled.

    With `remat`, gradients recompute each block's activations instead of keeping them; in stripes
    they keep what is costly to recompute and small (`KEPT`).
    """

    config: ModelConfig
    length: int
    heads: int
    rows: Rows = WHOLE
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, attention: Array | None = None) -> Array:
        keep = jax.checkpoint_policies.save_only_these_names(KEPT)
        blocks = nn.scan(
            # a scan's body needs no protection from common-subexpression elimination
            nn.remat(Block, prevent_cse=False, policy=keep) if self.remat else Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.length,
        )
        block = blocks(self.config, x.shape[-1], self.heads, self.rows, name="blocks")
        return block(x, attention)[0]
