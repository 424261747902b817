"""The key table: every tensor of the PyTorch release, and where its numbers live in Flax.

model.md section 9. A tensor in PyTorch layout becomes an array in Flax layout by `Layout`; `source`
picks the part of it that is alive and `target` the place in the Flax leaf, whose leading axis
counts the steps of a scan. Tensors without `parts` are published but never used.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from zmar_jax.config import ModelConfig

Layout = Literal["conv", "conv1", "vector", "matrix"]
Index = tuple[Any, ...]
"""What NumPy takes between brackets."""

ALL: Index = (slice(None),)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a published tensor and its place in a Flax leaf."""

    path: tuple[str, ...]
    layout: Layout
    source: Index = ALL
    target: Index = ALL


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published tensor: its key, PyTorch shape and live parts.

    `init` says what its dead numbers are initialised to: a convolution's uniform(1 / sqrt(fan_in)),
    ones or zeros.
    """

    key: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    init: Literal["uniform", "ones", "zeros"] = "uniform"
    fan_in: int = 1
    """Inputs of the convolution that the tensor belongs to, when `init` is uniform."""


def key_table(config: ModelConfig) -> list[Entry]:
    """All published tensors of a model of these sizes (1603 for the published one)."""
    return [*_encoder(config), *_flow(config)]


def _conv(key: str, o: int, i: int, size: int, *parts: Part) -> Entry:
    return Entry(key, (o, i, size, size), parts, fan_in=i * size * size)


def _live_conv(
    key: str, o: int, i: int, size: int, path: tuple[str, ...], at: Index = ALL
) -> Entry:
    return _conv(key, o, i, size, Part(path, "conv" if size == 3 else "conv1", target=at))


def _vector(key: str, shape: tuple[int, ...], path: tuple[str, ...], at: Index = ALL) -> Entry:
    return Entry(key, shape, (Part(path, "vector", target=at),))


# ---------------------------------------------------------------------------- encoder


def _encoder(cfg: ModelConfig) -> Iterator[Entry]:
    dim, n, heads = cfg.dim, cfg.blocks, cfg.heads

    def conv(torch_name: str, name: str, o: int, i: int, size: int) -> Entry:
        return _live_conv(f"RRDB.{torch_name}.weight", o, i, size, ("encoder", name, "kernel"))

    yield conv("patch_embed.proj", "patch_embed", dim, 3, 3)
    levels = range(1, cfg.levels + 1)
    for level in levels:
        width, stage, down = cfg.width(level), f"encoder_level{level}", f"down{level}_{level + 1}"
        for k in range(n[level - 1]):
            key = f"RRDB.{stage}.layer_stack.{k}."
            if cfg.mask_attention:
                yield from _zma(key + "mask.", ("encoder", stage, "blocks", "mask"), k, width)
            yield from _attn_share(key + "attn_share.", width, heads[level - 1])
            yield from _block(key, ("encoder", stage, "blocks"), k, width, heads[level - 1], cfg)
        yield conv(f"{down}.body.0", down, width // 2, width, 3)
    yield from _stage(cfg, "latent", n[-1], cfg.width(cfg.levels + 1), heads[-1])
    for level in levels[:0:-1]:
        width, up = cfg.width(level), f"up{level + 1}_{level}"
        yield conv(f"{up}.body.0", up, 4 * width, 2 * width, 3)
        reduce = f"reduce_chan_level{level}"
        yield conv(reduce, reduce, width, 2 * width, 1)
        yield from _stage(cfg, f"decoder_level{level}", n[level - 1], width, heads[level - 1])
    yield conv("up2_1.body.0", "up2_1", 4 * dim, 2 * dim, 3)
    yield from _stage(cfg, "decoder_level1", n[0], 2 * dim, heads[0])
    yield from _stage(cfg, "refinement", cfg.refinement_blocks, 2 * dim, heads[0])
    yield _conv("RRDB.output.weight", 3, 2 * dim, 3)
    for i, (c_out, c_in) in enumerate(((64, 3), (128, 64), (192, 128))):
        yield from _dead_conv_with_bias(f"RRDB.fine_tune_color_map.{i}", c_out, c_in)
    for i, level in enumerate(range(cfg.levels + 1, 1, -1)):
        name, width = f"reduce_chan{i}", cfg.width(level)
        if width != 4 * dim:
            yield conv(name, name, 4 * dim, width, 1)
        else:  # there is nothing to reduce, and the release does not use it
            yield _conv(f"RRDB.{name}.weight", 4 * dim, width, 1)


def _stage(cfg: ModelConfig, stage: str, length: int, width: int, heads: int) -> Iterator[Entry]:
    for k in range(length):
        yield from _block(f"RRDB.{stage}.{k}.", ("encoder", stage, "blocks"), k, width, heads, cfg)


def _block(
    key: str, path: tuple[str, ...], k: int, width: int, heads: int, cfg: ModelConfig
) -> Iterator[Entry]:
    hidden = cfg.hidden(width)
    attn, ffn = (*path, "attn"), (*path, "ffn")
    yield from _norm(key + "norm1.", (*path, "norm1"), k, width)
    yield _vector(key + "attn.temperature", (heads, 1, 1), (*attn, "temperature"), (k,))
    yield _live_conv(key + "attn.qkv.weight", 3 * width, width, 1, (*attn, "qkv"), (k,))
    yield _live_conv(key + "attn.qkv_dwconv.weight", 3 * width, 1, 3, (*attn, "qkv_dwconv"), (k,))
    yield _live_conv(key + "attn.project_out.weight", width, width, 1, (*attn, "project_out"), (k,))
    yield from _norm(key + "norm2.", (*path, "norm2"), k, width)
    yield _live_conv(
        key + "ffn.project_in.weight", 2 * hidden, width, 1, (*ffn, "project_in"), (k,)
    )
    yield _live_conv(key + "ffn.dwconv.weight", 2 * hidden, 1, 3, (*ffn, "dwconv"), (k,))
    yield _live_conv(key + "ffn.project_out.weight", width, hidden, 1, (*ffn, "project_out"), (k,))


def _norm(key: str, path: tuple[str, ...], k: int, width: int) -> Iterator[Entry]:
    yield _vector(key + "body.weight", (width,), (*path, "scale"), (k,))
    yield _vector(key + "body.bias", (width,), (*path, "bias"), (k,))


def _zma(key: str, path: tuple[str, ...], k: int, width: int) -> Iterator[Entry]:
    yield Entry(key + "norm1.body.weight", (width,), init="ones")
    yield Entry(key + "norm1.body.bias", (width,), init="zeros")
    yield _live_conv(key + "qkv.weight", 3 * width, width, 1, (*path, "qkv"), (k,))
    rows = Part((*path, "qkv_dwconv"), "conv", source=(slice(2 * width, None),), target=(k,))
    yield _conv(key + "qkv_dwconv.weight", 3 * width, 3 * width, 3, rows)
    yield _live_conv(key + "project_out.weight", width, width, 1, (*path, "project_out"), (k,))


def _attn_share(key: str, width: int, heads: int) -> Iterator[Entry]:
    yield Entry(key + "temperature_5", (heads, 1, 1, 1), init="ones")
    yield Entry(key + "temperature_4", (heads, 1, 1), init="ones")
    yield _conv(key + "qkv.weight", 3 * width, width, 1)
    yield _conv(key + "qkv_dwconv.weight", 3 * width, 1, 3)
    yield _conv(key + "project_out.weight", width, width, 1)
    yield _conv(key + "share_out.weight", width, width, 1)


def _dead_conv_with_bias(key: str, c_out: int, c_in: int) -> Iterator[Entry]:
    yield _conv(key + ".weight", c_out, c_in, 3)
    yield Entry(key + ".bias", (c_out,), fan_in=c_in * 9)


# ------------------------------------------------------------------------------- flow


def _flow(cfg: ModelConfig) -> Iterator[Entry]:
    i = 0
    for level in range(1, cfg.levels + 1):
        width = cfg.flow_channels(level)
        i += 1  # the squeeze has a number and no tensors
        for group, length in (
            ("additional", cfg.flow_additional_steps),
            ("conditional", cfg.flow_steps),
        ):
            path = ("flow", f"level{level}", group, "step")
            for k in range(length):
                key = f"flowUpsamplerNet.layers.{i}."
                yield from _actnorm(key, (*path, "actnorm"), k, width)
                weight = Part((*path, "invconv", "weight"), "matrix", target=(k,))
                yield Entry(key + "invconv.weight", (width, width), (weight,))
                if group == "conditional":
                    yield from _coupling(cfg, key + "affine.", path, level, k, width)
                i += 1
    yield from _dead_conv_with_bias("flowUpsamplerNet.f.0", 384, 320)


def _actnorm(key: str, path: tuple[str, ...], k: int, width: int) -> Iterator[Entry]:
    for name in ("bias", "logs"):
        yield _vector(f"{key}actnorm.{name}", (1, width, 1, 1), (*path, name), (k,))


def _coupling(
    cfg: ModelConfig, key: str, path: tuple[str, ...], level: int, k: int, width: int
) -> Iterator[Entry]:
    h, half, cond = cfg.flow_hidden, width // 2, cfg.condition_channels
    first, second = slice(None, h), slice(h, None)

    def on_z1(outputs: slice) -> Part:
        place = (k, ..., outputs)
        return Part((*path, "coupling", "z1", "kernel"), "conv", (slice(None), slice(half)), place)

    def on_condition(inputs: slice, outputs: slice) -> Part:
        place = (slice(None), slice(None), slice(None), k, outputs)
        leaf = ("flow", f"level{level}", "condition", "kernel")
        return Part(leaf, "conv", (slice(None), inputs), place)

    nets = {
        "fAffine": (half + cond, width, (on_z1(first), on_condition(slice(half, None), second))),
        "fAffine2": (half, width, (on_z1(second),)),
        "fFeatures": (cond, 2 * width, (on_condition(slice(None), first),)),
    }
    for net, (c_in, c_out, parts) in nets.items():
        name, leaf = f"{key}{net}.", (*path, "coupling", net)
        yield _conv(name + "0.weight", h, c_in, 3, *parts)
        yield from _actnorm(name + "0.", (*leaf, "actnorm0"), k, h)
        yield _live_conv(name + "2.weight", h, h, 1, (*leaf, "conv1"), (k,))
        yield from _actnorm(name + "2.", (*leaf, "actnorm1"), k, h)
        yield _live_conv(name + "4.weight", c_out, h, 3, (*leaf, "kernel"), (k,))
        yield _vector(name + "4.bias", (c_out,), (*leaf, "bias"), (k,))
        yield _vector(name + "4.logs", (c_out, 1, 1), (*leaf, "logs"), (k,))
