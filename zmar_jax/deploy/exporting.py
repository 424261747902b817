"""Making the file of an exported restorer."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from zmar_jax.config import ModelConfig
from zmar_jax.deploy import archive
from zmar_jax.deploy.archive import DYNAMIC, About, ExportError
from zmar_jax.files.places import local
from zmar_jax.flow import invert_weights
from zmar_jax.models import ZmarSNFlow
from zmar_jax.restore.programs import functions
from zmar_jax.runtime import compilation
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import Weights

PLATFORMS = ("cpu", "cuda", "tpu")
"""What programs can be made for, on any machine."""


def export_restorer(
    path: str | Path,
    weights: Weights,
    sizes: Sequence[str] = (DYNAMIC,),
    platforms: Sequence[str] = ("cpu",),
    tell: Callable[[str], None] = lambda text: None,
) -> About:
    """Writes a restorer as one file that `load_exported` runs without Flax and the model's code.

    Args:
      sizes: of the pictures, HEIGHTxWIDTH, each padded to multiples of the model's stride as in
        restoring; or `dynamic` for every size, which works on all rows at once.
      platforms: of `PLATFORMS`; each gets programs of its own.
      tell: called before each program is made, with what it is.

    Returns:
      What the file says of itself.

    Raises:
      ExportError: another size or platform, or the file cannot be written; nothing is.
    """
    path, config = local(path), weights.config
    archive.need_flatbuffers(path)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ExportError(f"platforms must be some of {', '.join(PLATFORMS)}, got {unknown}")
    padded = tuple(dict.fromkeys(_padded(size, config) for size in sizes))
    if not padded:
        raise ExportError("sizes must be HEIGHTxWIDTH or dynamic, got none")
    about = About(
        stride=config.stride,
        smallest=config.smallest,
        latent_channels=config.latent_channels,
        brightness=config.brightness,
        platforms=tuple(dict.fromkeys(platforms)),
        sizes=padded,
        checksum=weights.checksum,
        version=importlib.metadata.version("zmar-jax"),
        jax=jax.__version__,
    )
    try:
        variables = {"params": weights.params, "inverse": invert_weights(weights.params)}
    except np.linalg.LinAlgError as e:
        raise WeightsError(f"an invconv.weight is singular ({e}); use other weights") from e
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep=".").items()}
    archive.write(path, about, flat, _programs(about, config, flat, tell))
    return about


def _programs(
    about: About, config: ModelConfig, weights: Any, tell: Callable[[str], None]
) -> Iterator[tuple[str, bytes]]:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights)
    for platform in about.platforms:
        for size in about.sizes:
            tell(f"{size} for {platform}")
            for part, program in _exported(config, shapes, platform, size).items():
                yield f"{platform}/{size}/{part}", bytes(program.serialize())


def _exported(config: ModelConfig, shapes: Any, platform: str, size: str) -> dict[str, Any]:
    """encode and decode for pictures of one size, or of every."""
    height: Any
    width: Any
    if size == DYNAMIC:
        least = config.smallest // config.stride
        symbols = export.symbolic_shape("h, w", constraints=[f"h >= {least}", f"w >= {least}"])
        height, width = (config.stride * symbol for symbol in symbols)
    else:
        height, width = map(int, size.split("x"))
    # stripes have a number of rows, which no symbol has
    stripes = None if size == DYNAMIC else compilation.stripe_bytes(platform)
    encode, decode = functions(ZmarSNFlow(config, stripes))

    def made(function: Callable[..., Any], *arguments: Any) -> export.Exported:
        named = lambda weights, *rest: function(unflatten_dict(weights, sep="."), *rest)  # noqa: E731
        return export.export(jax.jit(named), platforms=[platform])(shapes, *arguments)

    encoder = made(encode, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    features = jax.tree.unflatten(encoder.out_tree, encoder.out_avals)
    features = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), features)
    z = jax.ShapeDtypeStruct((1, *config.latent_shape(height, width)), jnp.float32)
    return {"encode": encoder, "decode": made(decode, z, features)}


def _padded(size: str, config: ModelConfig) -> str:
    if size == DYNAMIC:
        return size
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(height, width) < config.smallest:
        raise ExportError(
            f"--size must be dynamic, or HEIGHTxWIDTH of at least {config.smallest}"
            f"x{config.smallest}, as 400x600; got {size}"
        )
    height, width = config.padded(height, width)
    return f"{height}x{width}"
