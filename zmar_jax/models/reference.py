"""The model in plain jax.numpy, line by line as docs/model.md writes it.

This file says what the model computes; every other form of it is only faster, and the tests hold
them to this one. Blocks and steps run one after the other in Python loops. Each layer is the
published one: nothing is composed, merged, cut into stripes or rounded to bfloat16.

Arrays are float32 and NHWC: B images of H x W pixels, multiples of 8 and at least 16.
`p` is always a part of the parameter tree of `ZmarSNFlow`. The tree stacks equal blocks and steps
along a first axis, and merges convolutions that read the same input: `unstack` and `open_flow`
undo that. `ZmarSNFlow(config, form="reference")` runs what is here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zmar_jax.config import ModelConfig
from zmar_jax.models.notation import (
    HIGHEST,
    channels,
    concatenate,
    conv1,
    conv3,
    dw3,
    from_cells,
    reflect_pad,
    resize,
    shuffle2,
    to_cells,
    unit_rows,
    unshuffle2,
    unstack,
)
from zmar_jax.models.watching import layer

Array = jax.Array
Params = Any
"""A nested dict of arrays."""
Level = dict[str, list[Params]]
"""A level's steps, from `open_level`."""
Levels = list[Level]
"""The flow's levels, from `open_flow`."""
Conditions = dict[str, Array]
"""fea_up0, fea_up1 and fea_up2."""

LEVELS = 3
"""As published. The levels are written out below, as on the page."""

# ------------------------------------------------------------- section 2, the ZMAR encoder


def encode(p: Params, config: ModelConfig, lr: Array, mask: Array) -> Conditions:
    """The flow's conditions (model.md sections 2 and 3).

    Args:
      p: the encoder's parameters.
      lr: log image [B, H, W, 3]; mask: 1 where a pixel is lost, else 0, [B, H, W, 1].

    Returns:
      fea_up0 [B, H/8, W/8, 6 dim], fea_up1 [B, H/4, W/4, 6 dim], fea_up2 [B, H/2, W/2, 6 dim].

    Raises:
      ValueError: an impossible shape.
    """
    check_image(lr, mask)
    h1, h2, h3, h4 = config.heads
    m1, m2, m3 = level_masks(mask, config) if config.mask_attention else (None, None, None)

    def conv(name: str, x: Array) -> Array:
        kernel = p[name]["kernel"]
        return conv3(x, kernel) if kernel.ndim == 4 else conv1(x, kernel)

    def stage(name: str, x: Array, heads: int, mask: Array | None = None) -> Array:
        for block_params in unstack(p[name]["blocks"]):
            x = block(block_params, config, x, heads, mask)
        return x

    e1 = stage("encoder_level1", conv("patch_embed", lr), h1, m1)
    e2 = stage("encoder_level2", unshuffle2(conv("down1_2", e1)), h2, m2)
    e3 = stage("encoder_level3", unshuffle2(conv("down2_3", e2)), h3, m3)
    latent = stage("latent", unshuffle2(conv("down3_4", e3)), h4)
    x = conv("reduce_chan_level3", concatenate(shuffle2(conv("up4_3", latent)), e3))
    d3 = stage("decoder_level3", x, h3)
    x = conv("reduce_chan_level2", concatenate(shuffle2(conv("up3_2", d3)), e2))
    d2 = stage("decoder_level2", x, h2)
    d1 = stage("decoder_level1", concatenate(shuffle2(conv("up2_1", d2)), e1), h1)
    f = stage("refinement", d1, h1)

    # section 3, conditioning
    u0, u1, u2 = conv("reduce_chan0", latent), d3, conv("reduce_chan2", d2)
    return {
        "fea_up0": concatenate(u0, resize(f, 8)),
        "fea_up1": concatenate(u1, resize(f, 4)),
        "fea_up2": concatenate(u2, resize(f, 2)),
    }


@layer
def block(p: Params, config: ModelConfig, x: Array, heads: int, mask: Array | None) -> Array:
    """A masked block, or a plain one where mask is None: [B, H, W, d] -> [B, H, W, d].

    LN1 is shared: x += ZMA(LN1(x), mask); x += MDTA(LN1(x)); x += GDFN(LN2(x)).
    """
    eps = config.layer_norm_eps
    if mask is not None:
        x = x + zma(p["mask"], layer_norm(p["norm1"], x, eps), mask, config.mask_grid)
    x = x + mdta(p["attn"], layer_norm(p["norm1"], x, eps), heads)
    return x + gdfn(p["ffn"], layer_norm(p["norm2"], x, eps))


@layer
def layer_norm(p: Params, x: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + bias, over the channels of a pixel; var is biased."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * channels(p["scale"]) + channels(p["bias"])


@layer
def mdta(p: Params, x: Array, heads: int) -> Array:
    """Channel attention: [B, H, W, d] -> [B, H, W, d].

    q, k, v = split3(dw3(conv1(x))); A = softmax(q k^T * temperature), of rows q and k of length 1.
    """
    q, k, v = jnp.split(dw3(conv1(x, p["qkv"]), p["qkv_dwconv"]), 3, -1)
    q, k, v = (rows_of_heads(a, heads) for a in (q, k, v))
    logits = jnp.einsum("bhin,bhjn->bhij", unit_rows(q), unit_rows(k), precision=HIGHEST)
    attention = jax.nn.softmax(logits * p["temperature"].reshape(1, heads, 1, 1))
    mixed = jnp.einsum("bhij,bhjn->bhin", attention, v, precision=HIGHEST)
    return conv1(mixed.transpose(0, 3, 1, 2).reshape(x.shape), p["project_out"])


def rows_of_heads(x: Array, heads: int) -> Array:
    """[B, H, W, d] -> [B, heads, d/heads, H W]; a head is a group of neighbouring channels."""
    b, height, width, d = x.shape
    return x.reshape(b, height * width, heads, d // heads).transpose(0, 2, 3, 1)


@layer
def gdfn(p: Params, x: Array) -> Array:
    """Gated feed-forward: a, b = split2(dw3(conv1(x))); conv1(gelu(a) b), with exact GELU."""
    a, b = jnp.split(dw3(conv1(x, p["project_in"]), p["dwconv"]), 2, -1)
    return conv1(jax.nn.gelu(a, approximate=False) * b, p["project_out"])


@layer
def zma(p: Params, x: Array, mask: Array, grid: int) -> Array:
    """Zero-element mask attention: [B, H, W, d] -> [B, H, W, d].

    v = conv3(conv1(x)), the last third of it; A = softmax(M M^T) of the mask's cells M, whose rows
    have length 1; conv1 of A v. `qkv_dwconv` holds only the kernel of that last third.

    Args:
      mask: from `level_masks`, padded to multiples of `grid`.
    """
    _, height, width, _ = x.shape
    padded = reflect_pad(x, grid)
    v = to_cells(conv3(conv1(padded, p["qkv"]), p["qkv_dwconv"]), grid)
    m = unit_rows(to_cells(mask, grid)[..., 0])
    attention = jax.nn.softmax(jnp.einsum("bpt,bqt->bpq", m, m, precision=HIGHEST))
    mixed = jnp.einsum("bpq,bqtc->bptc", attention, v, precision=HIGHEST)
    out = conv1(from_cells(mixed, grid, padded.shape), p["project_out"])
    return out[:, :height, :width]


def level_masks(mask: Array, config: ModelConfig) -> list[Array]:
    """m1, m2 and m3: the mask, and the mask resized to H/2 and H/4 and made 0 or 1; all padded."""
    smaller = [(resize(mask, s) > config.mask_threshold).astype(mask.dtype) for s in (2, 4)]
    return [reflect_pad(m, config.mask_grid) for m in (mask, *smaller)]


# ------------------------------------------------------------------- section 4, the SNFlow


CONDITION_OF_LEVEL = ("fea_up2", "fea_up1", "fea_up0")


@layer
def actnorm(p: Params, z: Array) -> Array:
    """(z + bias) * exp(logs)."""
    return (z + channels(p["bias"])) * channels(jnp.exp(p["logs"]))


@layer
def actnorm_inverse(p: Params, z: Array) -> Array:
    """z * exp(-logs) - bias."""
    return z * channels(jnp.exp(-p["logs"])) - channels(p["bias"])


@layer
def invconv(p: Params, z: Array) -> Array:
    """W z at every pixel."""
    return conv1(z, p["weight"].T)


@layer
def invconv_inverse(p: Params, z: Array) -> Array:
    """W^-1 z at every pixel."""
    return conv1(z, jnp.linalg.inv(p["weight"]).T)


Actnorm = Callable[[Params, Array], Array]
"""What every layer of that kind does: `actnorm`, or what sets it in `reference_init`."""


def flow_forward(
    levels: Levels, config: ModelConfig, x: Array, conditions: Conditions, norm: Actnorm = actnorm
) -> tuple[Array, Array]:
    """Image x [B, H, W, 3] -> z [B, H/8, W/8, 192] and logdet = log|det dz/dx|, nats [B]."""
    z, logdet = x, jnp.zeros(x.shape[0])
    for level, name in zip(levels, CONDITION_OF_LEVEL, strict=True):
        z, more = level_forward(level, config, z, conditions[name], norm)
        logdet = logdet + more
    return z, logdet


def flow_inverse(
    levels: Levels, config: ModelConfig, z: Array, conditions: Conditions
) -> tuple[Array, Array]:
    """Latent z [B, H/8, W/8, 192] -> x [B, H, W, 3] and logdet = log|det dx/dz|, nats [B]."""
    x, logdet = z, jnp.zeros(z.shape[0])
    for level, name in zip(reversed(levels), reversed(CONDITION_OF_LEVEL), strict=True):
        x, more = level_inverse(level, config, x, conditions[name])
        logdet = logdet + more
    return x, logdet


def level_forward(
    level: Level, config: ModelConfig, z: Array, c: Array, norm: Actnorm = actnorm
) -> tuple[Array, Array]:
    """squeeze2, then the steps: [B, H, W, C] -> [B, H/2, W/2, 4C] and logdet, nats [B]."""
    z, logdet = unshuffle2(z), jnp.zeros(z.shape[0])
    for step in [*level["additional"], *level["conditional"]]:
        z, more = step_forward(step, config, z, c, norm)
        logdet = logdet + more
    return z, logdet


def level_inverse(level: Level, config: ModelConfig, z: Array, c: Array) -> tuple[Array, Array]:
    """The way back: [B, H/2, W/2, 4C] -> [B, H, W, C] and logdet, nats [B]."""
    logdet = jnp.zeros(z.shape[0])
    for step in reversed([*level["additional"], *level["conditional"]]):
        z, more = step_inverse(step, config, z, c)
        logdet = logdet + more
    return shuffle2(z), logdet


@layer
def step_forward(
    p: Params, config: ModelConfig, z: Array, c: Array, norm: Actnorm = actnorm
) -> tuple[Array, Array]:
    """actnorm, invconv and, in a conditional step, the coupling; c is the level's condition."""
    pixels, weight = z.shape[1] * z.shape[2], p["invconv"]["weight"]
    z = norm(p["actnorm"], z)
    z = invconv(p["invconv"], z)
    logdet = pixels * (p["actnorm"]["logs"].sum() + jnp.linalg.slogdet(weight)[1])
    logdet = jnp.full(z.shape[0], logdet)
    if "coupling" not in p:
        return z, logdet
    nets = p["coupling"]
    s, t = coupling_net(nets["fFeatures"], config, c, norm)
    z = (z + t) * s
    logdet = logdet + sum_log(s)
    z1, z2 = jnp.split(z, 2, -1)
    s, t = coupling_net(nets["fAffine"], config, concatenate(z1, c), norm)
    z2 = (z2 + t) * s
    logdet = logdet + sum_log(s)
    s, t = coupling_net(nets["fAffine2"], config, z1, norm)
    z2 = (z2 + t) * s
    return concatenate(z1, z2), logdet + sum_log(s)


@layer
def step_inverse(p: Params, config: ModelConfig, z: Array, c: Array) -> tuple[Array, Array]:
    """The way back: each line of `step_forward` undone, the last one first."""
    pixels, weight = z.shape[1] * z.shape[2], p["invconv"]["weight"]
    logdet = -pixels * (p["actnorm"]["logs"].sum() + jnp.linalg.slogdet(weight)[1])
    logdet = jnp.full(z.shape[0], logdet)
    if "coupling" in p:
        nets = p["coupling"]
        z1, z2 = jnp.split(z, 2, -1)
        s, t = coupling_net(nets["fAffine2"], config, z1)
        z2 = z2 / s - t
        logdet = logdet - sum_log(s)
        s, t = coupling_net(nets["fAffine"], config, concatenate(z1, c))
        z2 = z2 / s - t
        logdet = logdet - sum_log(s)
        s, t = coupling_net(nets["fFeatures"], config, c)
        z = concatenate(z1, z2) / s - t
        logdet = logdet - sum_log(s)
    z = invconv_inverse(p["invconv"], z)
    return actnorm_inverse(p["actnorm"], z), logdet


def coupling_net(
    p: Params, config: ModelConfig, x: Array, norm: Actnorm = actnorm
) -> tuple[Array, Array]:
    """Scale s and shift t from the net's output h: t = h's even channels, logits = the odd ones.

    h = last_conv(relu(actnorm(conv1(relu(actnorm(conv3(x)))))));
    s = sigmoid(logits + 2) + 1e-4.
    """
    h = jax.nn.relu(norm(p["actnorm0"], conv3(x, p["conv3"])))
    h = jax.nn.relu(norm(p["actnorm1"], conv1(h, p["conv1"])))
    h = last_conv(p, h)
    shift, logits = h[..., 0::2], h[..., 1::2]
    return jax.nn.sigmoid(logits + config.scale_shift) + config.scale_eps, shift


@layer
def last_conv(p: Params, h: Array) -> Array:
    """(conv3(h) + bias) * exp(3 logs)."""
    return (conv3(h, p["kernel"]) + channels(p["bias"])) * channels(jnp.exp(3 * p["logs"]))


def sum_log(scale: Array) -> Array:
    """Sum of log s over positions and channels, [B]."""
    return jnp.log(scale).sum((1, 2, 3))


def open_flow(p: Params) -> Levels:
    """The levels of the flow's parameters, each with its steps as section 4 has them."""
    return [open_level(p[f"level{i}"]) for i in (1, 2, 3)]


def open_level(p: Params) -> Level:
    """`additional` and `conditional`, a list of steps each; all nets have their own first conv3.

    In the tree one kernel on z1 is that of fAffine, then fAffine2; one kernel on the condition, of
    all steps, is that of fFeatures, then fAffine.
    """
    steps = unstack(p["conditional"]["step"])
    for k, step in enumerate(steps):
        nets = step["coupling"]
        z1_affine, z1_affine2 = jnp.split(nets["z1"]["kernel"], 2, -1)
        c_features, c_affine = jnp.split(p["condition"]["kernel"][:, :, :, k], 2, -1)
        nets["fFeatures"]["conv3"] = c_features
        nets["fAffine"]["conv3"] = jnp.concatenate([z1_affine, c_affine], 2)
        nets["fAffine2"]["conv3"] = z1_affine2
    return {"additional": unstack(p["additional"]["step"]), "conditional": steps}


# ----------------------------------------------------------------- section 5, the objective


def nll(config: ModelConfig, gt: Array, z: Array, logdet: Array) -> Array:
    """-(logdet0 + logdet + log N(z; 0, I)) / (log 2 H W), logdet0 = -log(32) H W; bits, [B]."""
    pixels = gt.shape[1] * gt.shape[2]
    normal = -0.5 * (jnp.square(z) + math.log(2 * math.pi)).sum((1, 2, 3))
    objective = -math.log(config.quantization) * pixels + logdet + normal
    return -objective / (math.log(2) * pixels)


def dequantize(config: ModelConfig, gt: Array, noise: Array) -> Array:
    """gt + noise / 32; noise = u - 0.5, u uniform in [0, 1)."""
    return gt + noise / config.quantization


def check_image(lr: Array, mask: Array) -> None:
    b, height, width, c = lr.shape
    eights = not (height % 8 or width % 8) and min(height, width) >= 16
    if c != 3 or not eights or mask.shape != (b, height, width, 1):
        raise ValueError(
            "expected lr [B, H, W, 3] and mask [B, H, W, 1], H and W multiples of 8 and at least "
            f"16; got {lr.shape}, {mask.shape}"
        )
