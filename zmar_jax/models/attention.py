"""The encoder's blocks: zero-element mask attention, channel attention, gated feed-forward.

The parameters are the published ones. What is linear is composed before it meets the pixels:
kernels are small and images are large.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.config import ModelConfig

Array = jax.Array

conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for a convolution: uniform within 1 / sqrt(fan_in)."""

HIGHEST = ops.HIGHEST


class LayerNorm(nn.Module):
    """Over channels, biased variance, statistics in float32 (SPEC section 2, LN)."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        y = x.astype(ops.wide(x.dtype))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * ops.channels(scale) + ops.channels(bias)).astype(x.dtype)


class ZMA(nn.Module):
    """Zero-element mask attention (SPEC section 2, ZMA).

    `conv1 -> conv3 -> last third` is linear, and so is `project_out`, which acts on channels
    while the cells mix positions: the whole layer is one conv3 d -> d and one mixing of cells.
    Parameter `qkv_dwconv` holds the published rows that make v; q and k are never used.
    """

    @nn.compact
    def __call__(self, x: Array, attention: Array) -> Array:
        """x [B, H, W, d], attention from `ops.cell_attention` -> [B, H, W, d]."""
        _, height, width, d = x.shape
        qkv = self.param("qkv", conv_init, (d, 3 * d))
        value = self.param("qkv_dwconv", conv_init, (3, 3, 3 * d, d))
        out = self.param("project_out", conv_init, (d, d))
        kernel = jnp.einsum("im,hwmv->hwiv", qkv, value, precision=HIGHEST)
        kernel = jnp.einsum("hwiv,vo->hwio", kernel, out, precision=HIGHEST)
        v = ops.conv3(ops.pad_to_multiple(x, attention.shape[1]), kernel)
        return ops.mix_cells(v, attention)[:, :height, :width]


class MDTA(nn.Module):
    """Channel attention (SPEC section 2, MDTA).

    The norms divide the d/heads x d/heads Gram matrix instead of the pixels, and the attention
    is composed with `project_out` into one d x d matrix per image. So q and k are needed only
    through sums over pixels, which stripes add up.
    """

    heads: int
    stripe_bytes: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, d] -> [B, H, W, d]."""
        b, _, _, d = x.shape
        temperature = self.param("temperature", nn.initializers.ones, (self.heads,))
        qkv = self.param("qkv", conv_init, (d, 3 * d))
        taps = self.param("qkv_dwconv", conv_init, (3, 3, 1, 3 * d))
        out = self.param("project_out", conv_init, (d, d))

        def stripe(sums: tuple[Array, ...], x: Array) -> tuple[tuple[Array, ...], Array]:
            q, k, v = jnp.split(ops.dw3(ops.conv1(x, qkv), taps), 3, -1)
            return tuple(s + n for s, n in zip(sums, self._sums(q, k), strict=True)), v

        width = d // self.heads
        zeros = [jnp.zeros((b, self.heads, width, n), ops.wide(x.dtype)) for n in (width, 1, 1)]
        rows = ops.stripe_rows(x.shape, 3 * d, self.stripe_bytes)
        (gram, qq, kk), v = ops.scan_rows(stripe, tuple(zeros), x, rows)
        norms = jnp.maximum(jnp.sqrt(qq), 1e-12) * jnp.maximum(jnp.sqrt(kk), 1e-12).mT
        attention = nn.softmax(gram / norms * temperature.reshape(1, -1, 1, 1))
        out = out.reshape(self.heads, width, d)
        mixer = jnp.einsum("bhij,hio->bhjo", attention, out, precision=HIGHEST)
        mixer = mixer.reshape(b, d, d).astype(v.dtype)
        return jnp.einsum("bhwj,bjo->bhwo", v, mixer, precision=HIGHEST)

    def _sums(self, q: Array, k: Array) -> tuple[Array, Array, Array]:
        """q k^T, and the squared norms of q's and k's rows, over the pixels; float32."""
        b, _, _, d = q.shape
        q, k = (a.reshape(b, -1, self.heads, d // self.heads) for a in (q, k))
        gram = jnp.einsum(
            "bnhi,bnhj->bhij", q, k, precision=HIGHEST, preferred_element_type=ops.wide(q.dtype)
        )
        qq, kk = (jnp.square(a.astype(ops.wide(a.dtype))).sum(1)[..., None] for a in (q, k))
        return gram, qq, kk


class GDFN(nn.Module):
    """Gated feed-forward with exact GELU (SPEC section 2, GDFN)."""

    hidden: int
    stripe_bytes: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, d] -> [B, H, W, d]."""
        d = x.shape[-1]
        project_in = self.param("project_in", conv_init, (d, 2 * self.hidden))
        taps = self.param("dwconv", conv_init, (3, 3, 1, 2 * self.hidden))
        project_out = self.param("project_out", conv_init, (self.hidden, d))

        def stripe(carry: None, x: Array) -> tuple[None, Array]:
            a, b = jnp.split(ops.dw3(ops.conv1(x, project_in), taps), 2, -1)
            return carry, ops.conv1(nn.gelu(a, approximate=False) * b, project_out)

        rows = ops.stripe_rows(x.shape, 2 * self.hidden, self.stripe_bytes)
        return ops.scan_rows(stripe, None, x, rows)[1]


class Block(nn.Module):
    """A plain block, or a masked one where `attention` is given (SPEC section 2).

    A masked block's ZMA and MDTA share `norm1`.
    """

    config: ModelConfig
    heads: int
    stripe_bytes: int | None = None

    @nn.compact
    def __call__(self, x: Array, attention: Array | None = None) -> tuple[Array, None]:
        """x [B, H, W, d] -> (x, None), the shape of a scan's body."""
        cfg = self.config
        norm1 = LayerNorm(cfg.layer_norm_eps, name="norm1")
        if attention is not None:
            x = x + ZMA(name="mask")(norm1(x), attention)
        x = x + MDTA(self.heads, self.stripe_bytes, name="attn")(norm1(x))
        normed = LayerNorm(cfg.layer_norm_eps, name="norm2")(x)
        hidden = cfg.hidden(x.shape[-1])
        return x + GDFN(hidden, self.stripe_bytes, name="ffn")(normed), None


class Stage(nn.Module):
    """`length` equal blocks in one scan over stacked parameters, so that one is compiled.

    With `remat`, gradients recompute each block's activations instead of keeping them.
    """

    config: ModelConfig
    length: int
    heads: int
    stripe_bytes: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, attention: Array | None = None) -> Array:
        blocks = nn.scan(
            # a scan's body needs no protection from common-subexpression elimination
            nn.remat(Block, prevent_cse=False) if self.remat else Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.length,
        )
        return blocks(self.config, self.heads, self.stripe_bytes, name="blocks")(x, attention)[0]
