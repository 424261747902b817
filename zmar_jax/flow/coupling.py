"""The strengthened conditional affine coupling of SNFlow (SPEC section 4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zmar_jax import ops
from zmar_jax.config import ModelConfig
from zmar_jax.conv import conv1, conv3
from zmar_jax.flow import compose
from zmar_jax.flow.actnorm import ActNorm
from zmar_jax.flow.compose import Bijection, Pair
from zmar_jax.flow.health import record
from zmar_jax.rows import WHOLE, Rows, Wanted, function

Array = jax.Array

normal_init = nn.initializers.normal(0.05)


class Coupling(nn.Module):
    """Three affine maps, each z -> (z + t) * s, with halves z1, z2 of the channels:

    1. all channels, s and t from the condition alone (`fFeatures`);
    2. z2, s and t from z1 and the condition (`fAffine`);
    3. z2, s and t from z1 alone (`fAffine2`, the strengthened step).

    `cond` is [B, H, W, 2 * hidden]: the condition after the first convolutions that read it,
    fFeatures' and fAffine's share (`ConditionProjection` makes it).
    The two convolutions that read z1 are one, too: parameter `z1`.
    """

    config: ModelConfig
    rows: Rows = WHOLE

    def setup(self):
        self.fFeatures, self.fAffine, self.fAffine2 = (CouplingNet(self.config) for _ in range(3))
        self.z1 = Conv3(2 * self.config.flow_hidden)

    def bijections(self) -> list[Bijection]:
        """The first map, and the other two, which leave z1 as it is."""
        return [
            Pair(self.forward_all, self.inverse_all),
            Pair(self.forward_half, self.inverse_half),
        ]

    def forward(self, x: Array, cond: Array) -> tuple[Array, Array]:
        """x [B, H, W, C] -> (y, logdet [B])."""
        return compose.forward(self.bijections(), x, cond)

    def inverse(self, y: Array, cond: "Array | Condition") -> tuple[Array, Array]:
        """y [B, H, W, C] -> (x, logdet [B])."""
        if not isinstance(cond, Condition):
            return compose.inverse(self.bijections(), y, cond)
        local = function(self.rows, self, "inverse_rows")

        def window(wanted: Wanted, y: Array, features: Array) -> tuple[Array, Array]:
            return local(wanted, y, project(features, cond.kernel, self.config))

        width = cond.features.shape[-1] + 3 * cond.kernel.shape[-1]
        return self.rows.apply(window, y, cond.features, halo=2, width=width, in_place=True)

    def inverse_rows(self, wanted: Wanted, y: Array, cond: Array) -> tuple[Array, Array]:
        """As `inverse`, of the wanted rows of a window."""
        y, logdet2 = self.inverse_half(y, cond, wanted)
        x, logdet1 = self.inverse_all(y, cond, wanted)
        return wanted.crop(x), logdet1 + logdet2

    def forward_all(self, x: Array, cond: Array) -> tuple[Array, Array]:
        scale, shift = self.fFeatures(self._split(cond)[0], x.shape[-1])
        record(self.fFeatures, "scale", scale.min((1, 2, 3)))
        return (x + shift) * scale, _sum_log(scale)

    def inverse_all(
        self, y: Array, cond: Array, wanted: Wanted | None = None
    ) -> tuple[Array, Array]:
        scale, shift = self.fFeatures(self._split(cond)[0], y.shape[-1])
        return y / scale - shift, -_sum_log(scale, wanted)

    def forward_half(self, x: Array, cond: Array) -> tuple[Array, Array]:
        z1, z2 = jnp.split(x, 2, -1)
        (s1, t1), (s2, t2) = self._affines(z1, self._split(cond)[1])
        for net, scale in ((self.fAffine, s1), (self.fAffine2, s2)):
            record(net, "scale", scale.min((1, 2, 3)))
        y = jnp.concatenate([z1, ((z2 + t1) * s1 + t2) * s2], -1)
        return y, _sum_log(s1) + _sum_log(s2)

    def inverse_half(
        self, y: Array, cond: Array, wanted: Wanted | None = None
    ) -> tuple[Array, Array]:
        z1, z2 = jnp.split(y, 2, -1)
        (s1, t1), (s2, t2) = self._affines(z1, self._split(cond)[1])
        x = jnp.concatenate([z1, (z2 / s2 - t2) / s1 - t1], -1)
        return x, -(_sum_log(s1, wanted) + _sum_log(s2, wanted))

    def _split(self, cond: Array) -> tuple[Array, Array]:
        expected = 2 * self.config.flow_hidden
        if cond.shape[-1] != expected:
            raise ValueError(f"expected a condition of {expected} channels, got {cond.shape}")
        features, condition = jnp.split(ops.hidden_cast(cond, self.config.policy), 2, -1)
        return features, condition

    def _affines(self, z1: Array, condition: Array) -> tuple[tuple[Array, Array], ...]:
        first, second = jnp.split(self.z1(ops.hidden_cast(z1, self.config.policy)), 2, -1)
        width = z1.shape[-1]
        return self.fAffine(first + condition, width), self.fAffine2(second, width)


class CouplingNet(nn.Module):
    """What follows a coupling net's first convolution:
    actnorm, relu, conv1, actnorm, relu, conv3 * exp(3 logs), then scale and shift.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, h: Array, width: int) -> tuple[Array, Array]:
        """h [B, H, W, hidden] -> scale and shift, float32 [B, H, W, width]."""
        cfg, hidden = self.config, h.shape[-1]
        h = nn.relu(ActNorm(cfg.actnorm_eps, name="actnorm0").forward(h)[0])
        h = conv1(h, self.param("conv1", normal_init, (hidden, hidden)))
        h = nn.relu(ActNorm(cfg.actnorm_eps, name="actnorm1").forward(h)[0])
        kernel = self.param("kernel", nn.initializers.zeros, (3, 3, hidden, 2 * width))
        bias = self.param("bias", nn.initializers.zeros, (2 * width,))
        gain = jnp.exp(3 * self.param("logs", nn.initializers.zeros, (2 * width,)))
        # shifts are the even channels and logits the odd: sort the kernel, not the activations
        kernel, bias = _sort_even_odd(kernel * ops.channels(gain)), _sort_even_odd(bias * gain)
        out = conv3(h, kernel).astype(ops.wide(h.dtype)) + ops.channels(bias)
        shift, logit = jnp.split(out, 2, -1)
        return nn.sigmoid(logit + cfg.scale_shift) + cfg.scale_eps, shift


class Conv3(nn.Module):
    """3x3 convolution without bias, normal(0, 0.05) at first."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", normal_init, (3, 3, x.shape[-1], self.features))
        return conv3(x, kernel)


class Composed(NamedTuple):
    """A condition whose first channels are the first features times a matrix, not computed.

    The projection is linear, too: its kernels take the matrix, and the pixels have fewer channels.
    """

    features: Array
    """[B, H, W, I + J] for a condition of O + J channels."""
    matrix: Array
    """[I, O]."""


class Condition(NamedTuple):
    """A level's condition before its projection, of which each step makes its own share."""

    features: Array
    """[B, H, W, Cc]."""
    kernel: Array
    """[3, 3, Cc, K, 2 * hidden]."""


class ConditionProjection(nn.Module):
    """The first convolutions of fFeatures and fAffine on the condition.

    The condition does not change along a level, so this is done once for all K steps, outside the
    sequential part.
    """

    config: ModelConfig

    @nn.compact
    def kernel(self, width: int) -> Array:
        shape = (3, 3, width, self.config.flow_steps, 2 * self.config.flow_hidden)
        return self.param("kernel", normal_init, shape)

    def __call__(self, cond: Array | Composed) -> Array:
        """cond [B, H, W, Cc] -> [K, B, H, W, 2 * hidden]: fFeatures' half, then fAffine's."""
        features, kernel = self.one_by_one(cond)
        return jax.lax.platform_dependent(
            ops.hidden_cast(features, self.config.policy),
            kernel,
            cpu=project_in_turn,
            default=project_together,
        )

    def one_by_one(self, cond: Array | Composed) -> Condition:
        """The same, left for each step to do."""
        if not isinstance(cond, Composed):
            return Condition(cond, self.kernel(cond.shape[-1]))
        features, matrix = cond
        inner, outer = matrix.shape
        kernel = self.kernel(features.shape[-1] - inner + outer)
        first = jnp.einsum("io,hwokc->hwikc", matrix, kernel[:, :, :outer], precision=ops.HIGHEST)
        return Condition(features, jnp.concatenate([first, kernel[:, :, outer:]], 2))


def project(features: Array, kernel: Array, config: ModelConfig) -> Array:
    """One step's share: [B, H, W, Cc] with [3, 3, Cc, 2 * hidden] -> [B, H, W, 2 * hidden]."""
    return conv3(ops.hidden_cast(features, config.policy), kernel)


def project_together(features: Array, kernel: Array) -> Array:
    """All steps' shares by one convolution: kernel [3, 3, Cc, K, O] -> [K, B, H, W, O]."""
    h = conv3(features, kernel.reshape(*kernel.shape[:3], -1))
    return jnp.moveaxis(h.reshape(*features.shape[:3], *kernel.shape[3:]), 3, 0)


def project_in_turn(features: Array, kernel: Array) -> Array:
    """The same by K convolutions: a CPU's caches hold one step's kernel, and memory is spared."""
    return jax.lax.map(lambda kernel: conv3(features, kernel), jnp.moveaxis(kernel, 3, 0))


def _sort_even_odd(x: Array) -> Array:
    return jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def _sum_log(scale: Array, wanted: Wanted | None = None) -> Array:
    """Over positions and channels; of a window only the wanted rows that count."""
    if wanted is not None:
        scale = wanted.counted(wanted.crop(scale), 1)
    return jnp.log(scale).sum((1, 2, 3))
