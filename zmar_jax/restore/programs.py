"""The two compiled programs that restore a picture, on one device or on several."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from zmar_jax import ops
from zmar_jax.config import ConfigError, ModelConfig
from zmar_jax.models import ZmarSNFlow
from zmar_jax.runtime import compilation
from zmar_jax.tiling.shares import Shares

AXIS = "height"
"""The mesh axis that splits a picture's rows."""


@dataclasses.dataclass(frozen=True)
class RestorePrograms:
    """Jitted functions of `variables`, params and `flow.invert_weights` of them.

    With `shares`, features and pixels are the shares of all devices below each other.
    """

    encode: Any
    """(variables, image [B, H, W, 3], H and W multiples of the stride) -> `ZmarSNFlow.features`."""
    decode: Any
    """(variables, z [B, *latent_shape], features) -> pixels in [0, 1] or NaN, [B, H, W, 3]."""
    shares: Shares | None = None

    def picture(self, pixels: Any) -> np.ndarray:
        """What `decode` returned as the picture, [B, H, W, 3]."""
        pixels, shares = np.asarray(pixels), self.shares
        if shares is None:
            return pixels
        out = np.empty((pixels.shape[0], shares.height, *pixels.shape[2:]), pixels.dtype)
        for start, part in zip(shares.starts, np.split(pixels, shares.count, 1), strict=True):
            out[:, start : start + shares.rows] = part
        return out


def make_programs(config: ModelConfig, stripe_bytes: int | None) -> RestorePrograms:
    """Programs for one device, and pictures of any size."""
    encode, decode = functions(ZmarSNFlow(config, stripe_bytes))
    return RestorePrograms(compilation.jit(encode), compilation.jit(decode))


def make_split_programs(
    config: ModelConfig, stripe_bytes: int | None, devices: int, height: int
) -> RestorePrograms:
    """Programs for a picture of this height, a multiple of the stride, over that many devices.

    Every device holds the weights, the picture and the latent, and its share of all else.

    Raises:
      ConfigError: there are not so many devices; ValueError: too few rows for them.
    """
    if devices > len(jax.local_devices()):
        raise ConfigError(
            f"expected at most {len(jax.local_devices())} devices, which this host has, "
            f"got {devices}"
        )
    shares = Shares(AXIS, devices, height, config.stride)
    encode, decode = functions(ZmarSNFlow(config, stripe_bytes, shares=shares))
    mesh = jax.make_mesh(
        (devices,), (AXIS,), (AxisType.Auto,), devices=jax.local_devices()[:devices]
    )
    whole, split = PartitionSpec(), PartitionSpec(None, AXIS)

    def over_devices(fn: Any, *specs: PartitionSpec) -> Any:
        mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        return compilation.jit(mapped)

    return RestorePrograms(
        over_devices(encode, whole, whole),
        over_devices(
            lambda variables, z, features: decode(variables, shares.take(z), features),
            *(whole, whole, split),
        ),
        shares,
    )


def functions(model: ZmarSNFlow) -> tuple[Any, Any]:
    """What `RestorePrograms` compiles, encode and decode."""

    def encode(variables: Any, image: jax.Array) -> Any:
        return model.apply(variables, *ops.network_input(image), method="features")

    def decode(variables: Any, z: jax.Array, features: Any) -> jax.Array:
        return ops.to_pixels(model.apply(variables, z, features, method="decode")[0])

    return encode, decode
