"""`restore`."""

import math
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, make_folder, out, parse_bytes, progress


def restore(
    inputs: Positional[tuple[Path, ...]],
    /,
    checkpoint: Annotated[Path, arg(aliases=["-c"])],
    out_dir: Annotated[Path, arg(name="out", aliases=["-o"])] = Path("restored"),
    heat: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    std: bool = False,
    memory: str | None = None,
    devices: int = 1,
) -> int:
    """Restore photographs: files, or folders with all that is in them.

    Each becomes a PNG of the same size and depth, at the same place below the output folder.
    PNG, JPEG, WebP, TIFF and BMP are read; transparency is kept. Pictures of an earlier run in the
    output folder are replaced, and not restored again; inputs are never replaced.

    $ zmar-jax restore dark.jpg --checkpoint weights

    $ zmar-jax restore photos/ -c weights -o restored --heat 0.5 --samples 8 --std

    $ zmar-jax restore huge.png -c weights --memory 16GiB

    Args:
      inputs: Photographs, or folders to search.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir.
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

    if not inputs:
        raise UsageError("name at least one photograph or folder")
    if not 0 <= heat < math.inf:
        raise UsageError(f"--heat must be 0 or more, got {heat}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be 0 or more and below 2**32, got {seed}")
    if samples < 1:
        raise UsageError(f"--samples must be 1 or more, got {samples}")
    if samples > 1 and heat == 0:
        raise UsageError("--samples above 1 needs --heat above 0, else all samples are the same")
    if std and samples < 2:
        raise UsageError("--std needs --samples of 2 or more")
    limit = None if memory is None else parse_bytes("--memory", memory)
    if not 1 <= devices <= (most := len(jax.local_devices())):
        raise UsageError(f"--devices must be 1 to {most}, which this host has, got {devices}")
    found = find_photos(inputs, skip=out_dir)
    paths = output_paths(found, out_dir)
    if std:  # the deviations must not meet anything, either
        output_paths([*found, *((source, std_path(name)) for source, name in found)], out_dir)
    make_folder(out_dir)
    compilation.enable_cache()
    restorer = load_restorer(checkpoint, limit, devices)
    with progress(len(paths), "restoring") as step:
        failed = restore_files(restorer, paths, Options(heat, samples, seed, std), step)
    out.print(f"{len(paths) - len(failed)} of {len(paths)} restored into {out_dir}")
    return 1 if failed else 0
