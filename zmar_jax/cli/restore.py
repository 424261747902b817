"""`restore`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from zmar_jax.cli.console import (
    UsageError,
    check_sampling,
    make_folder,
    out,
    parse_bytes,
    progress,
    table_of,
)


def restore(
    inputs: Positional[tuple[Path, ...]] = (),
    /,
    checkpoint: Annotated[Path | None, arg(aliases=["-c"])] = None,
    out_dir: Annotated[Path, arg(name="out", aliases=["-o"])] = Path("restored"),
    heat: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    std: bool = False,
    memory: str | None = None,
    devices: int = 1,
) -> int:
    """Restore photographs: files, or folders with all that is in them; without any, a sample.

    Each becomes a PNG of the same size and depth, at the same place below the output folder.
    PNG, JPEG, WebP, TIFF and BMP are read; transparency is kept. Pictures of an earlier run in the
    output folder are replaced, and not restored again; inputs are never replaced.

    $ zmar-jax restore

    $ zmar-jax restore dark.jpg --checkpoint weights

    $ zmar-jax restore photos/ -c weights -o restored --heat 0.5 --samples 8 --std

    $ zmar-jax restore huge.png -c weights --memory 16GiB

    Args:
      inputs: Photographs, or folders to search; without any, a sample is darkened and restored.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir;
        without it, the small model that comes with the package.
      out_dir: Folder to write to.
      heat: Standard deviation of the latent: 0 gives the most likely picture.
      samples: How many restorations to average, at heat above 0.
      seed: Seed of the latent.
      std: Write the standard deviation over the samples, too, as NAME.std.png.
      memory: What a picture may take on each device, as 16GiB; by default what is free.
      devices: How many devices share the rows of a picture.
    """
    import jax

    from zmar_jax import compilation
    from zmar_jax.images import find_photos, output_paths
    from zmar_jax.restore import Options, load_restorer, restore_files, std_path

    check_sampling(heat, samples, seed)
    if std and samples < 2:
        raise UsageError("--std needs --samples of 2 or more")
    limit = None if memory is None else parse_bytes("--memory", memory)
    if not 1 <= devices <= (most := len(jax.local_devices())):
        raise UsageError(f"--devices must be 1 to {most}, which this host has, got {devices}")
    if inputs:
        found = find_photos(inputs, skip=out_dir)
        paths = output_paths(found, out_dir)
        if std:  # the deviations must not meet anything, either
            output_paths([*found, *((source, std_path(name)) for source, name in found)], out_dir)
        make_folder(out_dir)
    else:
        make_folder(out_dir)
        paths = [_write_sample(out_dir)]
    compilation.enable_cache()
    restorer = load_restorer(checkpoint, limit, devices)
    with progress(len(paths), "restoring") as step:
        failed = restore_files(restorer, paths, Options(heat, samples, seed, std), step)
    out.print(f"{len(paths) - len(failed)} of {len(paths)} restored into {out_dir}")
    if not inputs and not failed:
        _show_sample(*paths[0])
    return 1 if failed else 0


def _write_sample(out_dir: Path) -> tuple[Path, Path]:
    """The sample's dark picture, written, and where the restored one goes."""
    from zmar_jax.images import Photo, write_photo
    from zmar_jax.sample import sample

    low = out_dir / "sample" / "input.png"
    write_photo(low, Photo(sample()[0]))
    return low, out_dir / "sample" / "restored.png"


def _show_sample(low: Path, restored: Path) -> None:
    """Writes the pictures side by side with the ground truth, and says where everything is."""
    from zmar_jax.images import Photo, read_photo, write_photo
    from zmar_jax.metrics import score
    from zmar_jax.run.log import panel
    from zmar_jax.sample import sample

    dark, gt = sample()
    image = read_photo(restored).rgb
    side_by_side = low.with_name("panel.png")
    write_photo(side_by_side, Photo(panel([dark], [image], [gt])))
    table = table_of("a cup of coffee in the dark")
    table.add_row("input", f"{low}  {score(dark, gt).psnr:.1f} dB")
    table.add_row("restored", f"{restored}  {score(image, gt).psnr:.1f} dB")
    table.add_row("input | restored | ground truth", str(side_by_side))
    out.print(table)
