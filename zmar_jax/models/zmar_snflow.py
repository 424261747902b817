"""The whole model: the ZMAR encoder conditions SNFlow."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from zmar_jax.config import Kernels, ModelConfig, Remat
from zmar_jax.flow import initializers
from zmar_jax.flow.actnorm import ACTNORM_INIT
from zmar_jax.models import losses, reference
from zmar_jax.models.encoder import Encoder
from zmar_jax.models.snflow import Conditions, SNFlow
from zmar_jax.tiling.rows import WHOLE, Rows
from zmar_jax.tiling.shares import Shares

Array = jax.Array

Features = Mapping[str, Array]
"""What `features` or `encode` returned."""


class ZmarSNFlow(nn.Module):
    """ZMAR-SNFlow (model.md sections 2-5). Every method is pure: `model.apply(v, ..., method=...)`.

    `lr` [B, H, W, 3] and `mask` [B, H, W, 1] come from `ops.network_input`, of pictures that
    `exposure.as_seen` has brightened where the config has a brightness; H and W are multiples of
    the stride and at least `smallest` (`ModelConfig`), else ValueError.

    Five settings choose how it computes. None changes a parameter, or a result beyond rounding.

    `stripe_bytes`: the encoder, its gradients, and the flow's inverse work on stripes of the image
    whose arrays take about that many bytes (eight times as many in the flow), to stay within caches
    and memory. The flow's forward pass, which likelihoods take, is whole, and so is its inverse
    where `remat` is set.

    `remat`: gradients recompute the activations of every block and flow step (`blocks`);
    `reversible` also recomputes a flow step's input from its output.

    `shares`, inside `jax.shard_map`: each device works on its share of the rows. `features` takes
    the whole image and gives the share's; `decode` takes those and the share's latent, and gives
    the share's pixels and the logdet of all rows.

    `kernels` is `TrainConfig`'s, of the encoder's whole images: stripes and shares stay XLA's.

    `form` is `fast` or `reference`. The reference (`models.reference`) computes the same from the
    same parameters, in plain jax.numpy and in float32 whatever the policy. It is slow, ignores
    `stripe_bytes` and `remat`, and refuses `shares` and `flow.init_actnorm`. Only it has forward
    mode (`jax.jvp`): the fast form has gradients of its own.
    """

    config: ModelConfig = ModelConfig()
    stripe_bytes: int | None = None
    remat: Remat = "none"
    shares: Shares | None = None
    form: Literal["fast", "reference"] = "fast"
    kernels: Kernels = "xla"

    def __post_init__(self) -> None:
        if self.form not in ("fast", "reference"):
            raise ValueError(f"form must be fast or reference, got {self.form!r}")
        if self.form == "reference" and self.shares is not None:
            raise ValueError("the reference form takes no shares; use form='fast'")
        if self.form == "reference" and self.config.levels != reference.LEVELS:
            raise ValueError(
                f"the reference form has the published {reference.LEVELS} levels, got "
                f"{self.config.levels}; use form='fast'"
            )
        super().__post_init__()

    def setup(self) -> None:
        rows = WHOLE if self.is_initializing() else Rows(self.stripe_bytes, self.shares)
        kernels = "xla" if self.is_initializing() else self.kernels
        self.encoder: Encoder = Encoder(self.config, rows, self.remat != "none", kernels)
        if self.remat != "none":
            # the flow's gradients are not in stripes: its layers are narrow
            rows = dataclasses.replace(rows, stripe_bytes=None)
        elif rows.stripe_bytes is not None:
            # its halo is wider, so its stripes are, too; the encoder still takes the most memory
            rows = dataclasses.replace(rows, stripe_bytes=8 * rows.stripe_bytes)
        self.flow: SNFlow = SNFlow(self.config, self.remat, rows)

    def encode(self, lr: Array, mask: Array) -> dict[str, Array]:
        """The flow's conditions, each [B, H/s, W/s, 6 dim]: fea_up0 (s = stride), fea_up1, ..."""
        features = self.features(lr, mask)
        return features if self._plain else self.encoder.conditions(features)

    def features(self, lr: Array, mask: Array) -> dict[str, Array]:
        """The same for `decode` and `conditional_nll`, smaller and faster: in place of the finest
        d2_f [B, H/2, W/2, 4 dim], of which it is a linear function. The reference keeps it."""
        if self._plain:
            return reference.encode(self.variables["params"]["encoder"], self.config, lr, mask)
        return self.encoder(lr, mask)

    def forward(self, x: Array, lr: Array, mask: Array) -> tuple[Array, Array]:
        """Image x [B, H, W, 3] -> z [B, *latent_shape] and logdet = log|det dz/dx|, nats [B]."""
        return self._flow("forward", x, self.features(lr, mask))

    def inverse(self, z: Array, lr: Array, mask: Array) -> tuple[Array, Array]:
        """Latent z [B, *latent_shape] -> x [B, H, W, 3] and logdet = log|det dx/dz|, nats [B]."""
        return self.decode(z, self.features(lr, mask))

    def decode(self, z: Array, features: Features) -> tuple[Array, Array]:
        """What `inverse` returns, from what `encode` or `features` returned in one pass."""
        return self._flow("inverse", z, features)

    def nll(self, gt: Array, lr: Array, mask: Array, noise: Array) -> Array:
        """The release's objective, bits per pixel, [B] (model.md section 5).

        Args:
          gt: [B, H, W, 3] in [0, 1]; noise: u - 0.5 of the same shape, u uniform in [0, 1).
        """
        return self.conditional_nll(gt, self.features(lr, mask), noise)

    def conditional_nll(self, gt: Array, features: Features, noise: Array) -> Array:
        """What `nll` returns, from what `encode` or `features` returned."""
        if self._plain:
            if self.is_mutable_collection(ACTNORM_INIT):
                raise ValueError("init_actnorm needs form='fast', or reference_init.init_actnorm")
            x = reference.dequantize(self.config, gt, noise)
            return reference.nll(self.config, gt, *self._flow("forward", x, features))
        x = losses.dequantize(gt, noise, self.config.quantization)
        z, logdet = self._flow("forward", x, features)
        pixels = gt.shape[1] * gt.shape[2]
        return losses.nll_bits_per_pixel(z, logdet, pixels, self.config.quantization)

    @property
    def _plain(self) -> bool:
        """The reference computes; the fast form makes the parameters for both."""
        return self.form == "reference" and not self.is_initializing()

    def _flow(
        self, direction: Literal["forward", "inverse"], x: Array, features: Features
    ) -> tuple[Array, Array]:
        if self._plain:
            if "d2_f" in features:
                raise ValueError("the reference form takes conditions of `encode`, not d2_f")
            run = {"forward": reference.flow_forward, "inverse": reference.flow_inverse}[direction]
            levels = reference.open_flow(self.variables["params"]["flow"])
            return run(levels, self.config, x, dict(features))
        conditions: Conditions = self.encoder.factored(features) if "d2_f" in features else features
        return getattr(self.flow, direction)(x, conditions)

    __call__ = nll


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """The tree of the model's params as `jax.ShapeDtypeStruct`s; computes nothing."""
    return meta.unbox(_recorded(config))


def init_params(config: ModelConfig, rng: Array) -> dict[str, Any]:
    """Random params, distributed as `ZmarSNFlow(config).init` has them; compiles in seconds."""
    return initializers.draw(_recorded(config), rng)


@functools.cache
def _recorded(config: ModelConfig) -> dict[str, Any]:
    side = config.smallest
    image, mask = (jax.ShapeDtypeStruct((1, side, side, c), jnp.float32) for c in (3, 1))
    return initializers.recorded(ZmarSNFlow(config).init, image, image, mask, image)
