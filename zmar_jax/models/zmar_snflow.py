"""The whole model: the ZMAR encoder conditions SNFlow."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import losses
from zmar_jax.config import ModelConfig, Remat
from zmar_jax.models.encoder import Encoder
from zmar_jax.models.snflow import Conditions, SNFlow
from zmar_jax.rows import WHOLE, Rows
from zmar_jax.shares import Shares

Array = jax.Array

Features = Mapping[str, Array]
"""What `features` or `encode` returned."""


class ZmarSNFlow(nn.Module):
    """ZMAR-SNFlow (SPEC sections 2-5). Every method is pure: `model.apply(v, ..., method=...)`.

    `lr` [B, H, W, 3] and `mask` [B, H, W, 1] come from `ops.network_input`, of pictures that
    `exposure.expose` has brightened where the config has a white point; H and W are multiples of 8
    and at least 16, else ValueError.

    `stripe_bytes` changes no parameter and no result beyond rounding: with it the encoder, and the
    flow's inverse unless `remat` is set, work on stripes of the image whose arrays take about that
    many bytes (the flow's eight times), to stay within caches and memory; so do the encoder's
    gradients. Likelihoods take the flow's forward pass, which is always whole.
    Neither does `remat`: gradients recompute the activations of every block and flow step
    (`blocks`), and the flow's steps even from what comes out of them (`reversible`).
    With `shares`, inside `jax.shard_map`, each device works on its share of the rows: `features`
    takes the whole image and gives the share's; `decode` takes those and the share's
    latent and gives the share's pixels, and a logdet that means nothing.
    """

    config: ModelConfig = ModelConfig()
    stripe_bytes: int | None = None
    remat: Remat = "none"
    shares: Shares | None = None

    def setup(self):
        rows = WHOLE if self.is_initializing() else Rows(self.stripe_bytes, self.shares)
        self.encoder = Encoder(self.config, rows, self.remat != "none")
        if self.remat != "none":
            # the flow's gradients are not in stripes: its layers are narrow
            rows = dataclasses.replace(rows, stripe_bytes=None)
        elif rows.stripe_bytes is not None:
            # of more bytes, as their halo is wider; the encoder takes as much in all, or more
            rows = dataclasses.replace(rows, stripe_bytes=8 * rows.stripe_bytes)
        self.flow = SNFlow(self.config, self.remat, rows)

    def encode(self, lr: Array, mask: Array) -> dict[str, Array]:
        """The flow's conditions, each [B, H/s, W/s, 6 dim]: fea_up0 (s = 8), 1 (4), 2 (2)."""
        return self.encoder.conditions(self.features(lr, mask))

    def features(self, lr: Array, mask: Array) -> dict[str, Array]:
        """The same for `decode` and `conditional_nll`, smaller and faster: in place of fea_up2
        d2_f [B, H/2, W/2, 4 dim], of which it is a linear function."""
        return self.encoder(lr, mask)

    def forward(self, x: Array, lr: Array, mask: Array) -> tuple[Array, Array]:
        """Image x [B, H, W, 3] -> z [B, H/8, W/8, 192] and logdet = log|det dz/dx|, nats [B]."""
        return self.flow.forward(x, self._composed(self.features(lr, mask)))

    def inverse(self, z: Array, lr: Array, mask: Array) -> tuple[Array, Array]:
        """Latent z [B, H/8, W/8, 192] -> x [B, H, W, 3] and logdet = log|det dx/dz|, nats [B]."""
        return self.decode(z, self.features(lr, mask))

    def decode(self, z: Array, features: Features) -> tuple[Array, Array]:
        """As `inverse`, from what `encode` or `features` returned: one pass of the encoder."""
        return self.flow.inverse(z, self._composed(features))

    def nll(self, gt: Array, lr: Array, mask: Array, noise: Array) -> Array:
        """The release's objective, bits per pixel, [B] (SPEC section 5).

        Args:
          gt: [B, H, W, 3] in [0, 1]; noise: u - 0.5 of the same shape, u uniform in [0, 1).
        """
        return self.conditional_nll(gt, self.features(lr, mask), noise)

    def conditional_nll(self, gt: Array, features: Features, noise: Array) -> Array:
        """As `nll`, from what `encode` or `features` returned."""
        x = losses.dequantize(gt, noise, self.config.quantization)
        z, logdet = self.flow.forward(x, self._composed(features))
        pixels = gt.shape[1] * gt.shape[2]
        return losses.nll_bits_per_pixel(z, logdet, pixels, self.config.quantization)

    def _composed(self, features: Features) -> Conditions:
        return self.encoder.composed(features) if "d2_f" in features else features

    __call__ = nll


@functools.cache
def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """The tree of the model's params as `jax.ShapeDtypeStruct`s; computes nothing."""
    image, mask = (jax.ShapeDtypeStruct((1, 16, 16, c), jnp.float32) for c in (3, 1))
    variables = jax.eval_shape(
        ZmarSNFlow(config).init, jax.random.key(0), image, image, mask, image
    )
    return variables["params"]
