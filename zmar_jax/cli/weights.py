"""`convert` and `info`."""

from typing import Literal

from tyro.conf import Positional

from zmar_jax.cli.console import out, table_of
from zmar_jax.config import Config, ModelConfig, dump_config
from zmar_jax.files.places import Place


def convert(
    source: Positional[Place],
    target: Positional[Place],
    /,
    to: Literal["orbax", "safetensors", "pth"] | None = None,
    overwrite: bool = False,
    compact: bool = False,
    key: str | None = None,
) -> None:
    """Convert weights between the PyTorch release and JAX, in both directions.

    Nothing in a file is ever run, so files from strangers are safe to convert.

    $ zmar-jax convert LOLv2_G.pth weights

    $ zmar-jax convert weights for_pytorch.safetensors

    $ zmar-jax convert gs://bucket/run s3://bucket/weights.safetensors

    $ zmar-jax convert weights for_pytorch.pth   (needs pip install 'zmar-jax[torch]')

    Args:
      source: A .pth or .safetensors file of the release's tensors, the index of a sharded one, an
        Orbax directory, or the workdir of a training run, of which the best checkpoint is taken.
      target: A .safetensors or .pth file; a name without a suffix becomes an Orbax directory.
      to: Format of the target, where its name does not tell.
      overwrite: Replace what is at the target.
      compact: Float16, without the tensors that the model never uses: a third of the file.
      key: Which of several state dicts of a file; the table names them.
    """
    from zmar_jax.weights import load_weights, save_weights

    weights = load_weights(source, key)
    written = save_weights(target, weights, to, overwrite, compact)
    table = table_of(f"{source} -> {target}")
    table.add_row("format", f"{weights.format} -> {written}")
    table.add_row("read", weights.source)
    table.add_row("tensors read", str(weights.tensors))
    table.add_row("used", str(weights.used))
    table.add_row("unused", str(weights.tensors - weights.used))
    table.add_row("dtype", ", ".join(weights.dtypes))
    table.add_row("config", _differences(weights.config))
    table.add_row("checksum", weights.checksum)
    out.print(table)


def info(weights: Positional[Place], /, key: str | None = None) -> None:
    """Show what a weights file holds: format, sizes, parameters, arithmetic.

    $ zmar-jax info weights

    Args:
      weights: A .pth or .safetensors file, an Orbax directory or the workdir of a training run.
      key: Which of several state dicts of a file; the table names them.
    """
    from zmar_jax.benchmark import cost
    from zmar_jax.weights import load_weights, parameter_counts

    loaded = load_weights(weights, key)
    table = table_of(str(weights))
    table.add_row("format", loaded.format)
    table.add_row("holds", loaded.source)
    table.add_row("tensors", f"{loaded.tensors}, {loaded.used} used")
    table.add_row("dtype", ", ".join(loaded.dtypes))
    table.add_row("config", _differences(loaded.config))
    for part, live, published in parameter_counts(loaded.config):
        table.add_row(f"parameters, {part}", f"{live:,} live, {published:,} published")
    height, width = 400, 600
    encoder, flow = cost.restore_multiply_adds(loaded.config, height, width)
    for part, count in (("encoder", encoder), ("flow", flow), ("both", encoder + flow)):
        table.add_row(f"multiply-adds per pixel, {part}", f"{count / (height * width):,.0f}")
    table.add_row("checksum", loaded.checksum)
    out.print(table)


def _differences(config: ModelConfig) -> str:
    """What is not as published, as YAML."""
    return "as published" if config == ModelConfig() else dump_config(Config(config)).strip()
