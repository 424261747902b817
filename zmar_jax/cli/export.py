"""`export`."""

from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from zmar_jax.cli.console import UsageError, err, out, say_source, table_of
from zmar_jax.files.mirror import published
from zmar_jax.files.places import Place, is_there


def export(
    target: Positional[Place],
    /,
    checkpoint: Annotated[Place | None, arg(aliases=["-c"])] = None,
    size: UseAppendAction[tuple[str, ...]] = (),
    platforms: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Write weights and their restoring programs as one file, which runs without the model's code.

    In Python `zmar_jax.load_exported(FILE)(image)` gives what `restore` gives, with JAX, NumPy
    and flatbuffers alone; OpenCV too for the bundled model, which sees pictures exposed. The
    programs are StableHLO (`jax.export`), compiled where they run. No device of the platforms is
    needed here. Needs the extra `export`: pip install 'zmar-jax[export]'.

    $ zmar-jax export restorer.zmar --size 400x600

    $ zmar-jax export restorer.zmar -c LOLv2_G.pth --size 400x600 --size 600x400 --platforms cpu,tpu

    $ zmar-jax export restorer.zmar --size dynamic --platforms cuda

    Args:
      target: File to write, or its URL in a bucket.
      checkpoint: Weights: .pth, .safetensors, an Orbax directory or a training run's workdir;
        without it, the small model that comes with the package.
      size: Of the pictures, HEIGHTxWIDTH, as often as you like; or dynamic, for every size, at
        three to four times the memory. Dynamic if not given.
      platforms: Of cpu, cuda and tpu those that the file is for, with commas.
      overwrite: Replace the file.
    """
    from zmar_jax.deploy.exporting import export_restorer
    from zmar_jax.weights import load_weights

    if is_there(target) and not overwrite:
        raise UsageError(f"{target}: exists already; choose another name or --overwrite")
    weights = load_weights(checkpoint)
    say_source(checkpoint, weights.source)
    with published(target) as file, err.status("exporting") as status:
        about = export_restorer(
            file.path,
            weights,
            size or ("dynamic",),
            [name.strip() for name in platforms.split(",")],
            lambda text: status.update(f"exporting {text}"),
        )
        size_on_disk = file.path.stat().st_size
    table = table_of(str(target))
    table.add_row("sizes", ", ".join(about.sizes))
    table.add_row("platforms", ", ".join(about.platforms))
    table.add_row("weights", about.checksum)
    table.add_row("MiB", f"{size_on_disk / 2**20:.1f}")
    out.print(table)
