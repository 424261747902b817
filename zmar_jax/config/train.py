"""How a model is trained: the published recipe, and what may be asked for instead."""

import dataclasses
import re
from typing import Literal, get_args

from zmar_jax.config.checks import bounded, check_ranges, require

MANY = 2**31 - 1

Remat = Literal["none", "blocks", "reversible"]
Kernels = Literal["auto", "xla", "pallas"]
Logger = Literal["tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The recipe (model.md section 7). The defaults are the release's published configuration."""

    steps: int = bounded(40_000, 1, MANY)
    """Batches read. As in the release, the first initialises the actnorms and does not train."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Of the initial weights and of the dequantisation noise; `data.seed` is the data's."""
    init: str | None = None
    """Weights to begin from, in any format that `zmar-jax restore` reads: a path from the folder
    that `train` is started in, or `bundled`; null draws them. The first batch then changes nothing,
    as trained actnorms stay as they are."""
    trainable: str | None = None
    """Regular expression on the whole name of a parameter, as `flow/.*`, `encoder/refinement/.*` or
    `.*/condition/.*`: only those that match are trained, the others stay bit for bit; null trains
    all. With `init`, for fine-tuning a part."""
    learning_rate: float = bounded(2e-4, 0.0, 1.0)
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    """`cosine` falls from the end of the warm-up on; a step after the last would have rate 0."""
    milestones: tuple[float, ...] = bounded((0.5, 0.75, 0.9, 0.95), 0.0, 1.0)
    """Shares of `steps`, any number of them, at each of which `multistep` multiplies the learning
    rate by `decay`."""
    decay: float = bounded(0.5, 0.0, 1.0)
    warmup_steps: int = bounded(1000, 0, MANY)
    release_warmup: bool = True
    """The release's warm-up, whose plateau is 0.999 of the learning rate; else the whole of it."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` adds weight decay to the gradient (L2), as the release; `adamw` decouples it."""
    betas: tuple[float, float] = bounded((0.9, 0.999), 0.0, 0.999999)
    weight_decay_encoder: float = bounded(1e-5, 0.0, 1.0)
    weight_decay_flow: float = bounded(0.0, 0.0, 1.0)
    clip_norm: float | None = bounded(10_000.0, 1e-6, 1e9)
    """Global norm above which gradients are scaled down; null never clips. Small models in their
    first hundreds of steps show 10 to 450; the default leaves every step of the recipe alone."""
    accumulate: int = 1
    """Parts that a batch is cut into, one after the other; their mean gradient makes one step."""
    ema: float | None = bounded(None, 0.0, 0.999999)
    """Decay of a moving average of the weights, kept beside them and validated; null is none.
    It is at most (1 + step) / (10 + step), so that the first weights are soon forgotten."""
    weight_l1: float = bounded(0.0, 0.0, 1e6)
    """Weight of |gt - restored at heat 0| in the loss; its gradient passes through `inverse`."""
    flow_warmup_steps: int | None = bounded(None, 0, MANY)
    """For so many steps the loss is the nll alone, then the L1 part alone (model.md section 7);
    null adds both throughout."""
    remat: Remat = "none"
    """What the backward pass recomputes instead of keeping it (docs/performance.md): `blocks`, the
    activations of every encoder block and flow step; `reversible`, the same, and the flow's steps
    from their outputs, so that the flow's memory does not grow with `model.flow_steps`. Files of
    older versions hold a flag: `true` is read as `blocks`, `false` as `none`."""
    kernels: Kernels = "auto"
    """How a TPU computes the encoder's feed-forward passes: `xla` leaves them to its compiler,
    `pallas` takes this package's own kernels (`zmar_jax/kernels/pallas/`), and refuses other
    devices; `auto` is what has proved faster on the chip (docs/tpu.md): `xla`, so far."""
    fsdp: int = 1
    """Devices that parameters and optimizer are split over; the rest of the mesh splits the batch.
    """
    max_bad_steps: int = 20
    """Steps in a row with a non-finite loss or gradient after which training stops."""
    log_every: int = bounded(50, 1, MANY)
    validate_every: int = bounded(1000, 1, MANY)
    """The first step and the last are validated, too."""
    validate_pictures: int | None = bounded(None, 1, MANY)
    """Pictures of a validation, spread over all of the split, on any number of hosts the same;
    null is all of them."""
    checkpoint_every: int = bounded(1000, 1, MANY)
    loggers: tuple[Logger, ...] = ("tensorboard",)
    """What else is told what metrics.jsonl says: `tensorboard`, `wandb` (an extra to install), both
    or none."""
    keep: int = 3
    """Newest checkpoints kept, beside the best by validation PSNR."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.init != "", "init must name weights, or be null to draw them")
        _check_pattern(self.trainable)
        kinds = get_args(Remat)
        require(self.remat in kinds, f"remat must be one of {kinds}, got {self.remat!r}")
        ways = get_args(Kernels)
        require(self.kernels in ways, f"kernels must be one of {ways}, got {self.kernels!r}")
        require(
            list(self.milestones) == sorted(self.milestones),
            f"milestones must not decrease, got {self.milestones}",
        )
        require(
            self.flow_warmup_steps is None or self.weight_l1 > 0,
            "flow_warmup_steps needs weight_l1 above 0: it is when the loss becomes L1 alone",
        )


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as e:
        require(False, f"trainable must be a regular expression, as flow/.*; {pattern!r}: {e}")
