"""Composition: a flow step, steps scanned over stacked parameters, a level."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from zmar_jax.config import ModelConfig
from zmar_jax.flow.actnorm import ACTNORM_INIT, ActNorm
from zmar_jax.flow.coupling import Condition, ConditionProjection, Coupling
from zmar_jax.flow.health import HEALTH
from zmar_jax.flow.invconv import INVERSE, InvConv
from zmar_jax.flow.squeeze import Squeeze
from zmar_jax.rows import WHOLE, Rows

Array = jax.Array


class FlowStep(nn.Module):
    """actnorm, invconv and, if conditional, the coupling (SPEC section 4)."""

    config: ModelConfig
    conditional: bool
    rows: Rows = WHOLE

    def setup(self):
        self.actnorm = ActNorm(self.config.actnorm_eps)
        self.invconv = InvConv()
        if self.conditional:
            self.coupling = Coupling(self.config, self.rows)

    def forward(self, x: Array, cond: Array | None = None) -> tuple[Array, Array]:
        return _forward(self._bijections(), x, cond)

    def inverse(self, y: Array, cond: Array | Condition | None = None) -> tuple[Array, Array]:
        return _inverse(self._bijections(), y, cond)

    def _bijections(self) -> list[Any]:
        return [self.actnorm, self.invconv, *([self.coupling] if self.conditional else [])]


class FlowSteps(nn.Module):
    """`length` flow steps in one scan over stacked parameters, so that one step is compiled.

    With `remat`, gradients recompute each step's activations instead of keeping them.

    `cond` is [length, B, H, W, 2 * hidden]; unconditional steps do not read it. `inverse` takes a
    `Condition` instead where `rows` are not whole.
    """

    config: ModelConfig
    length: int
    conditional: bool
    remat: bool = False
    rows: Rows = WHOLE

    def setup(self):
        axes = {"params": 0, ACTNORM_INIT: 0, INVERSE: 0, HEALTH: 0}
        lift = {"variable_axes": axes, "split_rngs": {"params": True}, "length": self.length}
        step = FlowStep
        if self.remat:
            step = nn.remat(FlowStep, prevent_cse=False, methods=["forward", "inverse"])
        back = lift | {"reverse": True}
        if self.conditional and not self.rows.whole:
            axes_of: Any = Condition  # of axes in place of arrays
            back["in_axes"] = (axes_of(nn.broadcast, 0),)
        scanned = nn.scan(step, methods={"forward": lift, "inverse": back})
        self.step = scanned(self.config, self.conditional, self.rows)

    def forward(self, x: Array, cond: Array | None = None) -> tuple[Array, Array]:
        y, logdets = self.step.forward(x, cond if self.conditional else None)
        return y, logdets.sum(0)

    def inverse(self, y: Array, cond: Array | Condition | None = None) -> tuple[Array, Array]:
        x, logdets = self.step.inverse(y, cond if self.conditional else None)
        return x, logdets.sum(0)


class FlowLevel(nn.Module):
    """Squeeze, additional steps, conditional steps: [B, H, W, C] <-> [B, H/2, W/2, 4C].

    `cond` is [B, H/2, W/2, Cc] (SPEC section 4).
    """

    config: ModelConfig
    remat: bool = False
    rows: Rows = WHOLE

    def setup(self):
        cfg, remat, rows = self.config, self.remat, self.rows
        self.squeeze = Squeeze()
        self.additional = FlowSteps(cfg, cfg.flow_additional_steps, False, remat, rows)
        self.condition = ConditionProjection(cfg)
        self.conditional = FlowSteps(cfg, cfg.flow_steps, True, remat, rows)

    def forward(self, x: Array, cond: Array) -> tuple[Array, Array]:
        return _forward(self._bijections(), x, self.condition(cond))

    def inverse(self, y: Array, cond: Array) -> tuple[Array, Array]:
        # for all steps at once it would be K times 2 * hidden numbers a pixel
        project = self.condition if self.rows.whole else self.condition.one_by_one
        return _inverse(self._bijections(), y, project(cond))

    def _bijections(self) -> list[Any]:
        return [self.squeeze, self.additional, self.conditional]


def _forward(bijections: Sequence[Any], x: Array, cond: Array | None) -> tuple[Array, Array]:
    logdets = []
    for bijection in bijections:
        x, logdet = bijection.forward(x, cond)
        logdets.append(logdet)
    return x, sum(logdets[1:], logdets[0])


def _inverse(bijections: Sequence[Any], y: Array, cond: Any) -> tuple[Array, Array]:
    logdets = []
    for bijection in reversed(bijections):
        y, logdet = bijection.inverse(y, cond)
        logdets.append(logdet)
    return y, sum(logdets[1:], logdets[0])
