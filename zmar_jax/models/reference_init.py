"""The first values of all parameters, as docs/model.md section 9 lists them, in plain jax.numpy.

`parameters` is that list: the tree of `ZmarSNFlow`, leaf by leaf, with shape and distribution.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax.config import ModelConfig
from zmar_jax.models import reference
from zmar_jax.models.reference import Conditions, Params

Array = jax.Array


class Constant(NamedTuple):
    value: float

    def __call__(self, _: Array, shape: tuple[int, ...]) -> Array:
        return jnp.full(shape, self.value)


class Uniform(NamedTuple):
    """Between -bound and bound."""

    bound: float

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-self.bound, maxval=self.bound)


class Normal(NamedTuple):
    """Mean 0."""

    std: float

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return self.std * jax.random.normal(key, shape)


class Orthogonal(NamedTuple):
    """[K, C, C]: K random orthogonal matrices, Q of random normal ones."""

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        q, r = jnp.linalg.qr(jax.random.normal(key, shape))
        return q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[:, None]  # evenly over all of them


def convolution(fan_in: int) -> Uniform:
    """Within 1 / sqrt(fan_in): PyTorch's default for a convolution of that many inputs."""
    return Uniform(1 / math.sqrt(fan_in))


ZEROS, ONES, ORTHOGONAL = Constant(0.0), Constant(1.0), Orthogonal()
HIDDEN = Normal(0.05)
"""The hidden convolutions of a coupling net."""


class Parameter(NamedTuple):
    """Where a leaf is, its shape, and what its values are at first."""

    path: str
    shape: tuple[int, ...]
    draw: Constant | Uniform | Normal | Orthogonal
    """(key, shape) -> float32 numbers."""


# ------------------------------------------------------------------------ from nothing


def init_params(config: ModelConfig, rng: Array) -> Params:
    """The tree of parameters before training, float32; rng: a key of `jax.random.key`."""
    leaves = list(parameters(config))
    keys = jax.random.split(rng, len(leaves))
    drawn = {leaf.path: leaf.draw(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)}
    return unflatten_dict(drawn, sep="/")


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """Every parameter of a model of these sizes."""
    yield from _encoder(config)
    for level in (1, 2, 3):
        yield from _level(config, f"flow/level{level}", 3 * 4**level)


def _encoder(config: ModelConfig) -> Iterator[Parameter]:
    dim, (n1, n2, n3, n4), (h1, h2, h3, h4) = config.dim, config.blocks, config.heads
    sizes = {
        "encoder_level1": (n1, dim, h1),
        "encoder_level2": (n2, 2 * dim, h2),
        "encoder_level3": (n3, 4 * dim, h3),
        "latent": (n4, 8 * dim, h4),
        "decoder_level3": (n3, 4 * dim, h3),
        "decoder_level2": (n2, 2 * dim, h2),
        "decoder_level1": (n1, 2 * dim, h1),
        "refinement": (config.refinement_blocks, 2 * dim, h1),
    }
    for stage, (length, width, heads) in sizes.items():
        masked = config.mask_attention and stage.startswith("encoder_level")
        for name, shape, draw in _block(config, width, heads, masked):
            yield Parameter(f"encoder/{stage}/blocks/{name}", (length, *shape), draw)
    conv3s = {
        "patch_embed": (3, dim),
        "down1_2": (dim, dim // 2),
        "down2_3": (2 * dim, dim),
        "down3_4": (4 * dim, 2 * dim),
        "up4_3": (8 * dim, 16 * dim),
        "up3_2": (4 * dim, 8 * dim),
        "up2_1": (2 * dim, 4 * dim),
    }
    for name, (inputs, outputs) in conv3s.items():
        shape = (3, 3, inputs, outputs)
        yield Parameter(f"encoder/{name}/kernel", shape, convolution(9 * inputs))
    conv1s = {
        "reduce_chan_level3": (8 * dim, 4 * dim),
        "reduce_chan_level2": (4 * dim, 2 * dim),
        "reduce_chan0": (8 * dim, 4 * dim),
        "reduce_chan2": (2 * dim, 4 * dim),
    }
    for name, shape in conv1s.items():
        yield Parameter(f"encoder/{name}/kernel", shape, convolution(shape[0]))


def _block(config: ModelConfig, d: int, heads: int, masked: bool) -> Iterator[Parameter]:
    hidden = config.hidden(d)
    for norm in ("norm1", "norm2"):
        yield Parameter(f"{norm}/scale", (d,), ONES)
        yield Parameter(f"{norm}/bias", (d,), ZEROS)
    if masked:
        yield Parameter("mask/qkv", (d, 3 * d), convolution(d))
        yield Parameter("mask/qkv_dwconv", (3, 3, 3 * d, d), convolution(27 * d))
        yield Parameter("mask/project_out", (d, d), convolution(d))
    yield Parameter("attn/temperature", (heads,), ONES)
    yield Parameter("attn/qkv", (d, 3 * d), convolution(d))
    yield Parameter("attn/qkv_dwconv", (3, 3, 1, 3 * d), convolution(9))
    yield Parameter("attn/project_out", (d, d), convolution(d))
    yield Parameter("ffn/project_in", (d, 2 * hidden), convolution(d))
    yield Parameter("ffn/dwconv", (3, 3, 1, 2 * hidden), convolution(9))
    yield Parameter("ffn/project_out", (hidden, d), convolution(hidden))


def _level(config: ModelConfig, path: str, c: int) -> Iterator[Parameter]:
    steps, hidden = config.flow_steps, config.flow_hidden
    for group, length in (("additional", config.flow_additional_steps), ("conditional", steps)):
        yield Parameter(f"{path}/{group}/step/invconv/weight", (length, c, c), ORTHOGONAL)
        yield from _actnorm(f"{path}/{group}/step/actnorm", (length, c))
    condition = (3, 3, config.condition_channels, steps, 2 * hidden)
    yield Parameter(f"{path}/condition/kernel", condition, HIDDEN)
    coupling = f"{path}/conditional/step/coupling"
    yield Parameter(f"{coupling}/z1/kernel", (steps, 3, 3, c // 2, 2 * hidden), HIDDEN)
    for net, outputs in (("fFeatures", 2 * c), ("fAffine", c), ("fAffine2", c)):
        yield from _actnorm(f"{coupling}/{net}/actnorm0", (steps, hidden))
        yield Parameter(f"{coupling}/{net}/conv1", (steps, hidden, hidden), HIDDEN)
        yield from _actnorm(f"{coupling}/{net}/actnorm1", (steps, hidden))
        yield Parameter(f"{coupling}/{net}/kernel", (steps, 3, 3, hidden, outputs), ZEROS)
        yield Parameter(f"{coupling}/{net}/bias", (steps, outputs), ZEROS)
        yield Parameter(f"{coupling}/{net}/logs", (steps, outputs), ZEROS)


def _actnorm(path: str, shape: tuple[int, ...]) -> Iterator[Parameter]:
    yield Parameter(f"{path}/bias", shape, ZEROS)
    yield Parameter(f"{path}/logs", shape, ZEROS)


# --------------------------------------------------------------------- from the first batch


def init_actnorm(
    p: Params, config: ModelConfig, gt: Array, conditions: Conditions, noise: Array
) -> Params:
    """The flow's parameters with every actnorm set from a batch, one layer after the other.

    Args:
      p: the flow's parameters; gt: [B, H, W, 3]; conditions: of `reference.encode`; noise: u - 0.5.
    """
    levels = reference.open_flow(p)
    x = reference.dequantize(config, gt, noise)
    reference.flow_forward(levels, config, x, conditions, set_actnorm(config.actnorm_eps))
    leaves: dict[Any, Any] = flatten_dict(p)
    for path in leaves:
        if path[-2].startswith("actnorm"):
            level, group, _, *inner = path
            steps = levels[int(level[-1]) - 1][group]
            leaves[path] = jnp.stack([leaf(step, inner) for step in steps])
    return unflatten_dict(leaves)


def set_actnorm(eps: float) -> reference.Actnorm:
    """In place of `reference.actnorm`: changes the parameters so that y has mean 0, variance 1.

    bias = -mean and logs = log(1 / (std + eps)) of x's channels over the batch and all pixels; std
    is biased. A layer with a bias that is not 0 keeps both.
    """

    def normalise(p: dict[str, Array], x: Array) -> Array:
        unset = jnp.all(p["bias"] == 0)
        mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
        p["bias"] = jnp.where(unset, -mean, p["bias"])
        p["logs"] = jnp.where(unset, jnp.log(1 / (std + eps)), p["logs"])
        return reference.actnorm(p, x)

    return normalise


def leaf(tree: Params, path: Sequence[str]) -> Array:
    """The array at this path of names."""
    return functools.reduce(lambda tree, name: tree[name], path, tree)
