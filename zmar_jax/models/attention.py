"""The encoder's blocks: zero-element mask attention, `mdta`, gated feed-forward.

The parameters are the published ones. What is linear is composed before it meets the pixels:
kernels are small and images are large.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from zmar_jax import ops
from zmar_jax.config import Kernels, ModelConfig
from zmar_jax.flow.initializers import FanIn, ones, zeros
from zmar_jax.kernels import conv1, conv1_dw3, conv3
from zmar_jax.kernels.pallas import ffn as pallas
from zmar_jax.models.mdta import MDTA
from zmar_jax.runtime import kernels, sharding
from zmar_jax.tiling.rows import WHOLE, Rows

Array = jax.Array

HIGHEST = ops.HIGHEST
SAVED = "saved"
"""Names what gradients save of a block in stripes: MDTA's sums, and x after ZMA."""


class LayerNorm(nn.Module):
    """Over channels, biased variance, statistics in float32 (model.md section 2, LN)."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", ones, (width,))
        bias = self.param("bias", zeros, (width,))
        y = ops.normalize(x.astype(ops.wide(x.dtype)), self.eps)
        return ops.affine(y, scale, bias).astype(x.dtype)


class ZMA(nn.Module):
    """Zero-element mask attention (model.md section 2, ZMA).

    `conv1 -> conv3 -> last third` is linear, and so is `project_out`, which acts on channels
    while the cells mix positions: the whole layer is one conv3 d -> d and one mixing of cells.
    Parameter `qkv_dwconv` holds the published rows that make v; q and k are never used.
    """

    rows: Rows = WHOLE

    @nn.compact
    def __call__(self, x: Array, norm: Callable[[Array], Array], attention: Array) -> Array:
        """x [B, H, W, d], attention from `ops.cell_attention` -> [B, H, W, d], of norm(x)."""
        d = x.shape[-1]
        qkv = self.param("qkv", FanIn(), (d, 3 * d))
        value = self.param("qkv_dwconv", FanIn(), (3, 3, 3 * d, d))
        out = self.param("project_out", FanIn(), (d, d))
        kernel = jnp.einsum("im,hwmv->hwiv", qkv, value, precision=HIGHEST)
        kernel = jnp.einsum("hwiv,vo->hwio", kernel, out, precision=HIGHEST)
        return self.rows.mix_cells(lambda x: conv3(norm(x), kernel), x, attention, 2 * d)


class GDFN(nn.Module):
    """Gated feed-forward with exact GELU (model.md section 2, GDFN)."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H + 2, W + 2, d] from `pad1` -> [B, H, W, d]."""
        d = x.shape[-1]
        project_in = self.param("project_in", FanIn(), (d, 2 * self.hidden))
        taps = self.param("dwconv", FanIn(), (3, 3, 1, 2 * self.hidden))
        project_out = self.param("project_out", FanIn(), (self.hidden, d))
        # hidden channels of zeros, which give gelu(0) * 0 = 0: vectors and matrix units want whole
        # sixteens, and products of 127 or 255 columns take up to twice as long on CPU
        pad = [(0, -self.hidden % 16)]
        # in halves, as the gradient of a split writes all channels again, slowly
        a, b = (
            conv1_dw3(
                x,
                jnp.pad(project_in[:, half], [(0, 0), *pad]),
                jnp.pad(taps[..., half], [(0, 0)] * 3 + pad),
            )
            for half in (slice(self.hidden), slice(self.hidden, None))
        )
        return conv1(ops.gelu(a) * b, jnp.pad(project_out, [*pad, (0, 0)]))


class Block(nn.Module):
    """A plain block, or a masked one where `attention` is given (model.md section 2).

    A masked block's ZMA and MDTA share `norm1`. Every pass reads x and normalises it anew: nothing
    wider than x is ever whole where `rows` are stripes.
    """

    config: ModelConfig
    width: int
    heads: int
    rows: Rows = WHOLE
    kernels: Kernels = "xla"

    def setup(self) -> None:
        eps = self.config.layer_norm_eps
        self.norm1: LayerNorm = LayerNorm(eps)
        self.norm2: LayerNorm = LayerNorm(eps)
        self.mask: ZMA = ZMA(self.rows)
        self.attn: MDTA = MDTA(self.width, self.heads)
        self.hidden: int = self.config.hidden(self.width)
        self.ffn: GDFN = GDFN(self.hidden)

    def __call__(self, x: Array, attention: Array | None = None) -> tuple[Array, None]:
        """x [B, H, W, d] -> (x, None), the shape of a scan's body."""
        if attention is not None:
            x = self._saved(x + self.mask(x, self.rows.free(self.norm1), attention))
        return self._feed(self._attend(x)), None

    def _attend(self, x: Array) -> Array:
        """x + MDTA(norm1(x)), in two passes over the rows."""
        norm, sums, attn = map(self.rows.free, (self.norm1, self.attn.sums, self.attn))
        # once for both passes where all rows are there: gradients would keep two
        normed = self.rows.once(lambda window, x: window.pad1(norm(x)))
        _, total = self.rows.apply(
            lambda window, x: (None, sums(normed(window, x), window)),
            x,
            halo=1,
            width=2 * self.width,
        )
        mixer = self.attn.mixer(self._saved(total))
        return self.rows.apply(
            lambda window, x: (window.crop(x) + attn(normed(window, x), mixer), ()),
            x,
            halo=1,
            width=self.width,
            in_place=True,
        )[0]

    def _feed(self, x: Array) -> Array:
        """x + GDFN(norm2(x))."""
        if self.rows.whole and kernels.pallas_runs(self.kernels, x, self.hidden):
            return self._feed_in_one_kernel(x)
        norm, ffn = map(self.rows.free, (self.norm2, self.ffn))
        return self.rows.apply(
            lambda window, x: (window.crop(x) + ffn(window.pad1(norm(x))), ()),
            x,
            halo=1,
            width=2 * self.hidden,
            in_place=True,
        )[0]

    def _feed_in_one_kernel(self, x: Array) -> Array:
        norm, ffn = (module.variables["params"] for module in (self.norm2, self.ffn))
        convs = (ffn[name] for name in ("project_in", "dwconv", "project_out"))
        eps, interpret = self.config.layer_norm_eps, pallas.INTERPRETED
        run = functools.partial(pallas.feed_forward, eps=eps, interpret=interpret)
        with jax.named_scope("ffn"):
            return sharding.over_batch(run, x, norm["scale"], norm["bias"], *convs)

    def _saved(self, results: Any) -> Any:
        """Named for `Stage.remat`, as stripes do not need them to recompute what is wide."""
        return results if self.rows.whole else checkpoint_name(results, SAVED)


class Stage(nn.Module):
    """`length` equal blocks in one scan over stacked parameters, so that one is compiled.

    With `remat`, gradients recompute each block's activations instead of keeping them; in stripes
    they save what is costly to recompute and small (`SAVED`).
    """

    config: ModelConfig
    length: int
    heads: int
    rows: Rows = WHOLE
    remat: bool = False
    kernels: Kernels = "xla"

    @nn.compact
    def __call__(self, x: Array, attention: Array | None = None) -> Array:
        keep = jax.checkpoint_policies.save_only_these_names(SAVED)
        blocks = nn.scan(
            # a scan's body needs no protection from common-subexpression elimination
            nn.remat(Block, prevent_cse=False, policy=keep) if self.remat else Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.length,
        )
        sizes = self.config, x.shape[-1], self.heads
        block = blocks(*sizes, self.rows, self.kernels, name="blocks")
        return block(x, attention)[0]
