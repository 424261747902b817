"""`prepare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, err, out, progress, table_of
from zmar_jax.config.data import Benchmark


def prepare(
    name: Positional[Benchmark],
    /,
    source: Path,
    data_dir: Annotated[Path, arg(name="data-dir")] = Path("data"),
    crop: int = 160,
    overwrite: bool = False,
) -> None:
    """Prepare a benchmark for training and evaluation, from its authors' folder.

    Every file is checked before anything is written, and all that is wrong is listed. The result is
    a TensorFlow Dataset, which needs no TensorFlow, and a manifest with a checksum of each example.
    PNG files are kept byte for byte; npy frames become PNG files of 960x512.

    $ zmar-jax prepare lol_v1 --source ~/LOLdataset

    $ zmar-jax prepare sdsd_indoor --source ~/SDSD --data-dir /data/prepared --overwrite

    Args:
      name: The benchmark.
      source: Folder that holds it, in either public layout, up to two folders deep.
      data_dir: Folder to write to.
      crop: The largest crop to train on, pixels: smaller images are errors.
      overwrite: Replace what was prepared before.
    """
    from zmar_jax.data import datasets

    if crop < 1:
        raise UsageError(f"--crop must be 1 or more, got {crop}")

    def warn(message: str) -> None:
        err.print(f"warning: {message}", style="yellow")

    manifest = datasets.prepare(name, source, data_dir, crop, overwrite, progress, warn)
    table = table_of(f"{name} -> {data_dir / name}")
    table.add_row("source", manifest["source"])
    table.add_row("layout", manifest["layout"])
    for split, part in manifest["splits"].items():
        table.add_row(split, f"{part['count']} pairs, fingerprint {part['fingerprint']}")
    out.print(table)
