"""Whether a state dict is that of a whole model, before its sizes are read off it."""

import re
from collections.abc import Collection

from zmar_jax.config.model import MOST_LEVELS
from zmar_jax.torch_port.pickles import WeightsError, shown

_WHOLE = "save the state dict of the whole generator; of a sharded file give the index"
# as they are called where a part is saved by itself
_BARE = {
    "encoder": re.compile(r"(patch_embed|(en|de)coder_level\d+|latent|refinement)\."),
    "flow": re.compile(r"layers\.\d+\.(actnorm|invconv|affine)\."),
}


def check_whole(keys: Collection[str]) -> None:
    """Raises WeightsError where whole parts of a model are missing, or it is another network."""
    encoder = any(key.startswith("RRDB.") for key in keys)
    flow = any(key.startswith("flowUpsamplerNet.") for key in keys)
    if not encoder and not flow:
        raise _no_model(keys)
    lacking = [*_stages_lacking(keys), *_steps_lacking(keys)]
    if encoder and flow and not lacking:
        return
    alone = "the encoder alone" if not flow else "the flow alone" if not encoder else "a part"
    first = ", ".join(lacking[:3]) or "flowUpsamplerNet.*"
    raise WeightsError(f"holds {alone} of a model, {len(keys)} tensors, without {first}; {_WHOLE}")


def _no_model(keys: Collection[str]) -> WeightsError:
    for part, name in _BARE.items():
        if any(name.match(key) for key in keys):
            return WeightsError(f"holds the {part} alone, {len(keys)} tensors; {_WHOLE}")
    found = ", ".join(shown(key)[1:-1] for key in list(keys)[:3]) or "none"
    return WeightsError(
        "not a ZMAR-SNFlow generator: no tensor RRDB.patch_embed.proj.weight "
        f"(first of {len(keys)} keys: {found}); give the *_G.pth of the release"
    )


def _stages_lacking(keys: Collection[str]) -> list[str]:
    """Stages of the encoder, of as many levels as any stage tells of."""
    stages = {key.split(".")[1] for key in keys if key.startswith("RRDB.")}
    numbers = [int(m[1][:4]) for s in stages if (m := re.fullmatch(r"[a-z]+_level(\d+)", s))]
    levels = range(1, min(max(numbers, default=1), MOST_LEVELS) + 1)
    wanted = ["patch_embed", "latent", "refinement"]
    wanted += [f"{side}coder_level{level}" for side in ("en", "de") for level in levels]
    lacking = [f"RRDB.{stage}.*" for stage in wanted if stage not in stages]
    first = "RRDB.patch_embed.proj.weight"
    return lacking or ([] if first in keys else [first])


def _steps_lacking(keys: Collection[str]) -> list[str]:
    """Whether steps of the flow are missing: each level has as many, a squeeze before them."""

    def numbers(of: str) -> set[int]:
        found = (re.match(rf"flowUpsamplerNet\.layers\.(\d{{1,6}})\.{of}\.", key) for key in keys)
        return {int(match[1]) for match in found if match}

    steps, couplings = numbers("invconv"), numbers("affine")
    levels = len({step - 1 for step in steps} - steps)
    whole = (
        len(couplings) > 0
        and len(steps) > len(couplings)
        and not len(steps) % levels
        and not len(couplings) % levels
    )
    return [] if whole else ["some of flowUpsamplerNet.layers.*"]
