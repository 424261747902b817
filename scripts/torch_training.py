"""The training step in PyTorch, written plainly, to hold zmar_jax's to; see `torch_model.py`.

Arrays are NCHW. Not here: the moving average, which changes no loss, and the first step's
initialisation of the actnorms.
"""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch_encoder import Sizes
from torch_model import ZmarSNFlow, network_input

ENCODER = "RRDB."
"""What the names of the encoder's tensors begin with; all others are the flow's."""


class Training:
    """A model and its optimizer.

    Args:
      sizes: `dataclasses.asdict(ModelConfig(...))`; recipe: the same of a TrainConfig.
      weights: {published key: tensor}.
    """

    def __init__(self, sizes: dict[str, Any], recipe: dict[str, Any], weights: dict[str, Tensor]):
        self.recipe = recipe
        self.model = ZmarSNFlow(Sizes.of(sizes))
        self.model.load_state_dict(weights, strict=True)
        self.optimizer = make_optimizer(self.model, recipe)

    def step(
        self, low: Tensor, gt: Tensor, noise: Tensor, iteration: int, rate: float
    ) -> dict[str, float]:
        """One step; what it measured before its update.

        Args:
          low, gt: uint8 [B, 3, H, W]; iteration: steps done before, which `flow_warmup_steps`
            counts; rate: the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        measured = losses(self.model, self.recipe, low / 255, gt / 255, noise, iteration)
        measured["loss"].backward()
        clip = self.recipe["clip_norm"]
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), float("inf") if clip is None else clip
        )
        self.optimizer.step()
        return {name: value.item() for name, value in (measured | {"grad_norm": norm}).items()}


def make_optimizer(model: ZmarSNFlow, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """Adam with L2 in the gradient, or AdamW; each half of the model has its own weight decay."""
    halves: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        halves[name.startswith(ENCODER)].append(parameter)
    decays = {True: recipe["weight_decay_encoder"], False: recipe["weight_decay_flow"]}
    groups = [{"params": halves[half], "weight_decay": decays[half]} for half in halves]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe["optimizer"]]
    return kind(groups, lr=recipe["learning_rate"], betas=tuple(recipe["betas"]))


def losses(
    model: ZmarSNFlow,
    recipe: dict[str, Any],
    low: Tensor,
    gt: Tensor,
    noise: Tensor,
    iteration: int,
) -> dict[str, Tensor]:
    """`loss`, `nll` and, where it has a weight, `l1`: of the restoration at heat 0."""
    conditions = model.RRDB(*network_input(low))
    nll = model.encode(gt, noise, conditions)[2].mean()
    weight, warmup = recipe["weight_l1"], recipe["flow_warmup_steps"]
    if not weight:
        return {"loss": nll, "nll": nll}
    b, _, h, w = gt.shape
    restored, _ = model.decode(gt.new_zeros(b, 192, h // 8, w // 8), conditions)
    l1 = distance(gt, restored)
    loss = nll + weight * l1
    if warmup is not None:
        loss = nll if iteration < warmup else weight * l1
    return {"loss": loss, "nll": nll, "l1": l1}


def distance(gt: Tensor, restored: Tensor) -> Tensor:
    """Mean |gt - clip(restored, 0, 1)| over the values of `restored` that are not NaN."""
    valid = ~restored.isnan()
    error = (gt - torch.where(valid, restored, gt).clamp(0, 1)).abs()
    return error.sum() / valid.sum().clamp(min=1)
