"""`mask`."""

from pathlib import Path

from tyro.conf import Positional

from zmar_jax.cli.console import (
    UsageError,
    check_folder,
    check_seed,
    make_folder,
    out,
    progress,
    range_of,
)


def mask(
    source: Positional[Path],
    target: Positional[Path],
    /,
    seed: int = 0,
    masks: Path | None = None,
    share: str | None = None,
    darken: bool = False,
    exposure: str | None = None,
    panel: bool = False,
) -> int:
    """Copy photographs with lost pixels, and on request darkened: data to try a model on.

    For each photograph in the source, TARGET/images gets a PNG whose lost pixels are zero, and
    TARGET/masks one that is white where they are. Both depend on the seed and on the relative name
    without suffix, not on what else is there. Depth, grey and transparency are kept; darkening
    gives 8 bits. Pictures of an earlier run are replaced, inputs never.

    $ zmar-jax mask photos/ masked --seed 1

    $ zmar-jax mask photos/ masked --masks my_masks/

    $ zmar-jax mask photo.png example --darken --panel

    Args:
      source: A photograph, or a folder to search.
      target: Folder to write to.
      seed: Of masks and darkening.
      masks: Folder of mask images, white where pixels are lost; without it, masks are generated.
      share: Lost share of an image, LOW:HIGH, of generated masks; 0.12:0.37 if not given.
      darken: Darken as a camera at night would, before pixels are lost.
      exposure: With --darken: evenly less light instead, by a factor on linear light, LOW:HIGH, as
        0.03:0.3.
      panel: Also write the steps next to each other into TARGET/panels.
    """
    from zmar_jax.config import DarkenConfig, MaskConfig
    from zmar_jax.data.copies import CopyOptions, plan_copies, write_copies
    from zmar_jax.data.folders import survey
    from zmar_jax.imaging.images import find_photos

    check_seed(seed)
    if masks and share:
        raise UsageError("--share is of generated masks; leave it or --masks out")
    if masks and masks.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{masks}: lies in the output folder {target}; choose another")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{target}: lies in the input folder {source}; choose another")
    if exposure and not darken:
        raise UsageError("--exposure needs --darken")
    mask_config = MaskConfig()
    if masks:
        mask_config = MaskConfig(source=str(masks.resolve()))
    if share:
        mask_config = MaskConfig(share=range_of("--share", share))
    dark_config = (
        DarkenConfig(exposure=range_of("--exposure", exposure), kind="gain")
        if exposure
        else DarkenConfig()
    )
    if darken and source.is_dir() and (sets := survey(source).sets):
        raise UsageError(
            f"{source}: holds pairs, of which half are dark already ({sets[0].low}); name a folder "
            "of bright photographs alone"
        )
    options = CopyOptions(seed, mask_config, dark_config if darken else None, panel)
    notes: list[str] = []
    check_folder(target)
    copies = plan_copies(find_photos([source], tell=notes.append), target)
    make_folder(target)
    with progress(len(copies), "masking") as step:
        failed = write_copies(copies, options, step, notes.append)
    out.print(
        "; ".join([f"{len(copies) - len(failed)} of {len(copies)} masked into {target}", *notes])
    )
    return 1 if failed else 0
