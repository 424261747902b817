"""`prepare`."""

import os
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, err, out, progress, table_of
from zmar_jax.config.data import Benchmark


def prepare(
    name: Positional[Literal["photos", Benchmark]],
    /,
    source: Path,
    data_dir: Annotated[Path, arg(name="data-dir")] = Path("data"),
    crop: int = 160,
    overwrite: bool = False,
    val_share: Annotated[float | None, arg(name="val-share")] = None,
    workers: int | None = None,
    clean: bool = False,
    skip_broken: Annotated[bool, arg(name="skip-broken")] = False,
) -> None:
    """Prepare a benchmark, from its authors' folder, or a large folder of photographs.

    Of a benchmark every file is checked before anything is written, and all that is wrong is
    listed. The result is a TensorFlow Dataset, which needs no TensorFlow, and a manifest with a
    checksum of each example. PNG files are kept byte for byte; npy frames become PNG files of
    960x512.

    Photographs are packed into shards, each as its file is, by several processes. Killed and
    started again, the command goes on. Training with data.folder=DIR/photos then starts at once,
    however many they are, and has the same batches as with the folder.

    $ zmar-jax prepare lol_v1 --source ~/LOLdataset

    $ zmar-jax prepare sdsd_indoor --source ~/SDSD --data-dir /data/prepared --overwrite

    $ zmar-jax prepare photos --source ~/Pictures --data-dir /data/prepared --skip-broken

    Args:
      name: The benchmark, or photos.
      source: Folder that holds it: a benchmark in either public layout, up to two folders deep;
        photographs at any depth.
      data_dir: Folder to write to.
      crop: The largest crop to train on, pixels: smaller images are errors.
      overwrite: Replace what was prepared before.
      val_share: Of photographs: share kept for validation, as data.val_share; 0.1 by itself.
      workers: Of photographs: processes that write; as many as CPU cores by itself.
      clean: Of photographs: all of it is clean, even where names say low and ground truth.
      skip_broken: Of photographs: leave out what cannot be read or is smaller than the crop.
    """
    if crop < 1:
        raise UsageError(f"--crop must be 1 or more, got {crop}")
    if name == "photos":
        _photos(source, data_dir, crop, overwrite, val_share, workers, clean, skip_broken)
        return
    given = {"--val-share": val_share, "--workers": workers}
    given |= {"--clean": clean or None, "--skip-broken": skip_broken or None}
    if wrong := [option for option, value in given.items() if value is not None]:
        raise UsageError(f"{wrong[0]} is of photos, not of {name}")
    _benchmark(name, source, data_dir, crop, overwrite)


def _benchmark(name: Benchmark, source: Path, data_dir: Path, crop: int, overwrite: bool) -> None:
    from zmar_jax.data import datasets

    def warn(message: str) -> None:
        err.print(f"warning: {message}", style="yellow")

    manifest = datasets.prepare(name, source, data_dir, crop, overwrite, progress, warn)
    table = table_of(f"{name} -> {data_dir / name}")
    table.add_row("source", manifest["source"])
    table.add_row("layout", manifest["layout"])
    for split, part in manifest["splits"].items():
        table.add_row(split, f"{part['count']} pairs, fingerprint {part['fingerprint']}")
    out.print(table)


def _photos(
    source: Path,
    data_dir: Path,
    crop: int,
    overwrite: bool,
    val_share: float | None,
    workers: int | None,
    clean: bool,
    skip_broken: bool,
) -> None:
    from zmar_jax.data.prepare_photos import NAME, Options, prepare_photos

    share = 0.1 if val_share is None else val_share
    if not 0 <= share < 1:
        raise UsageError(f"--val-share must be 0 or more and below 1, got {share}")
    workers = os.cpu_count() or 1 if workers is None else workers
    if not 0 <= workers <= 256:
        raise UsageError(f"--workers must be from 0 to 256, got {workers}")
    options = Options(crop, share, clean, skip_broken, workers)
    manifest = prepare_photos(source, data_dir, options, overwrite, progress, err.print)
    table = table_of(f"photos -> {data_dir / NAME}")
    table.add_row("source", manifest.source)
    for split, part in manifest.splits.items():
        size = sum(shard.bytes for shard in part.shards) / 2**20
        row = f"{part.count} photographs, {len(part.shards)} shards, {size:.0f} MiB"
        table.add_row(split, f"{row}, fingerprint {part.fingerprint}")
    if left_out := [each for part in manifest.splits.values() for each in part.left_out]:
        table.add_row("left out", "\n".join(left_out))
    out.print(table)
    out.print(f"to train: data.folder={data_dir / NAME} data.val_share={manifest.val_share}")
