"""The strengthened conditional affine coupling of SNFlow (model.md section 4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.flow.actnorm import ActNorm
from zmar_jax.flow.affine import Affine, ChannelMaps
from zmar_jax.flow.bijection import Bijection, Chain
from zmar_jax.flow.health import record
from zmar_jax.flow.initializers import Normal, zeros
from zmar_jax.kernels import conv1, conv3

Array = jax.Array

READERS = ("fFeatures", "fAffine")
"""The nets that read the condition, in the order of their channels in it."""


def condition_width(config: ModelConfig) -> int:
    """Channels of what a coupling reads of the condition: `flow_hidden` for each of `READERS`."""
    return len(READERS) * config.flow_hidden


class Coupling(Chain, nn.Module):
    """Three affine maps, each z -> (z + t) * s, with halves z1, z2 of the channels:

    1. all channels, s and t from the condition alone (`fFeatures`);
    2. z2, s and t from z1 and the condition (`fAffine`);
    3. z2, s and t from z1 alone (`fAffine2`, the strengthened step).

    `cond` is [B, H, W, condition_width]: the condition after the first convolutions of the nets
    that read it. The two convolutions that read z1 are one, too: parameter `z1`.
    """

    config: ModelConfig

    def setup(self) -> None:
        self.fFeatures: CouplingNet = CouplingNet(self.config)
        self.fAffine: CouplingNet = CouplingNet(self.config)
        self.fAffine2: CouplingNet = CouplingNet(self.config)
        self.z1: Conv3 = Conv3(2 * self.config.flow_hidden)

    def bijections(self) -> list[Bijection]:
        """The first map, and the other two, which leave z1 as it is."""
        return [
            ChannelMaps(self._first_map, start=0, halo=0, cond_halo=1),
            ChannelMaps(self._half_maps, start=0.5, halo=2, cond_halo=1),
        ]

    def _first_map(self, fixed: Array, cond: Array, width: int) -> Sequence[Affine]:
        return [self.fFeatures(self._share(cond, "fFeatures"), width)]

    def _half_maps(self, z1: Array, cond: Array, width: int) -> Sequence[Affine]:
        first, second = jnp.split(self.z1(ops.hidden_cast(z1, self.config.policy)), 2, -1)
        first = first + self._share(cond, "fAffine")
        return [self.fAffine(first, width), self.fAffine2(second, width)]

    def _share(self, cond: Array, net: str) -> Array:
        expected, hidden = condition_width(self.config), self.config.flow_hidden
        if cond.shape[-1] != expected:
            raise ValueError(f"expected a condition of {expected} channels, got {cond.shape}")
        start = READERS.index(net) * hidden
        return ops.hidden_cast(cond[..., start : start + hidden], self.config.policy)


class CouplingNet(nn.Module):
    """What follows a coupling net's first convolution:
    actnorm, relu, conv1, actnorm, relu, conv3 * exp(3 logs), then scale and shift.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, h: Array, width: int) -> Affine:
        """h [B, H, W, hidden] -> scale and shift, float32 [B, H, W, width]."""
        cfg, hidden = self.config, h.shape[-1]
        h = nn.relu(ActNorm(cfg.actnorm_eps, name="actnorm0").forward(h)[0])
        h = conv1(h, self.param("conv1", Normal(), (hidden, hidden)))
        h = nn.relu(ActNorm(cfg.actnorm_eps, name="actnorm1").forward(h)[0])
        kernel = self.param("kernel", zeros, (3, 3, hidden, 2 * width))
        bias = self.param("bias", zeros, (2 * width,))
        gain = jnp.exp(3 * self.param("logs", zeros, (2 * width,)))
        # shifts are the even channels and logits the odd: sort the kernel, not the activations
        kernel, bias = _sort_even_odd(kernel * ops.channels(gain)), _sort_even_odd(bias * gain)
        out = conv3(h, kernel).astype(ops.wide(h.dtype)) + ops.channels(bias)
        shift, logit = jnp.split(out, 2, -1)
        scale = nn.sigmoid(logit + cfg.scale_shift) + cfg.scale_eps
        record(self, "scale", scale.min((1, 2, 3)))
        return Affine(scale, shift)


class Conv3(nn.Module):
    """3x3 convolution without bias, normal(0, 0.05) at first."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", Normal(), (3, 3, x.shape[-1], self.features))
        return conv3(x, kernel)


def _sort_even_odd(x: Array) -> Array:
    return jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1)
