"""Composition: a flow step, steps scanned over stacked parameters, a level."""

from typing import Any

import jax
from flax import linen as nn

from zmar_jax.config import ModelConfig, Remat
from zmar_jax.flow import compose, reversible
from zmar_jax.flow.actnorm import ACTNORM_INIT, ActNorm
from zmar_jax.flow.compose import Bijection
from zmar_jax.flow.coupling import Composed, Condition, ConditionProjection, Coupling
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
        return compose.forward(self._parts(), x, cond)

    def inverse(self, y: Array, cond: Array | Condition | None = None) -> tuple[Array, Array]:
        return compose.inverse(self._parts(), y, cond)

    def _parts(self) -> list[Bijection]:
        return [self.actnorm, self.invconv, *([self.coupling] if self.conditional else [])]

    def bijections(self) -> list[Bijection]:
        """The step in its smallest parts."""
        coupling = self.coupling.bijections() if self.conditional else []
        return [self.actnorm, self.invconv, *coupling]


class FlowSteps(nn.Module):
    """`length` flow steps in one scan over stacked parameters, so that one step is compiled.

    With `remat`, gradients recompute each step's activations instead of keeping them.

    `cond` is [length, B, H, W, 2 * hidden]; unconditional steps do not read it. It may be a
    `Condition` instead: where `rows` are not whole, for `inverse`; and where they are, gradients
    then recompute the steps' inputs from their outputs, too (`reversible`).
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
            back["in_axes"] = (axes_of(nn.broadcast, 3),)
        scanned = nn.scan(step, methods={"forward": lift, "inverse": back})
        self.step = scanned(self.config, self.conditional, self.rows)

    def forward(self, x: Array, cond: Array | Condition | None = None) -> tuple[Array, Array]:
        if isinstance(cond, Condition):
            return self._reversible("forward", x, cond)
        y, logdets = self.step.forward(x, cond if self.conditional else None)
        return y, logdets.sum(0)

    def inverse(self, y: Array, cond: Array | Condition | None = None) -> tuple[Array, Array]:
        if isinstance(cond, Condition) and self.rows.whole:
            return self._reversible("inverse", y, cond)
        x, logdets = self.step.inverse(y, cond if self.conditional else None)
        return x, logdets.sum(0)

    def _reversible(self, direction: str, x: Array, cond: Condition) -> tuple[Array, Array]:
        step = FlowStep(self.config, self.conditional, parent=None)
        params, shared = self.step.variables["params"], cond if self.conditional else None
        y, logdet, recorded = reversible.run(step, direction, params, x, shared)
        if self.is_mutable_collection(HEALTH):
            for name, values in recorded.items():
                self.step.put_variable(HEALTH, name, values)
        return y, logdet


class FlowLevel(nn.Module):
    """Squeeze, additional steps, conditional steps: [B, H, W, C] <-> [B, H/2, W/2, 4C].

    `cond` is [B, H/2, W/2, Cc] (SPEC section 4), or `Composed`. `remat` is `TrainConfig`'s.
    """

    config: ModelConfig
    remat: Remat = "none"
    rows: Rows = WHOLE

    def setup(self):
        cfg, remat, rows = self.config, self.remat != "none", self.rows
        self.squeeze = Squeeze()
        self.additional = FlowSteps(cfg, cfg.flow_additional_steps, False, remat, rows)
        self.condition = ConditionProjection(cfg)
        self.conditional = FlowSteps(cfg, cfg.flow_steps, True, remat, rows)

    def forward(self, x: Array, cond: Array | Composed) -> tuple[Array, Array]:
        return compose.forward(self._bijections(), x, self._projected(cond))

    def inverse(self, y: Array, cond: Array | Composed) -> tuple[Array, Array]:
        # for all steps at once it would be K times 2 * hidden numbers a pixel
        project = self._projected if self.rows.whole else self.condition.one_by_one
        return compose.inverse(self._bijections(), y, project(cond))

    def _bijections(self) -> list[Bijection]:
        return [self.squeeze, self.additional, self.conditional]

    def _projected(self, cond: Array | Composed) -> Array | Condition:
        # what only the modules themselves can do: make, initialise or read variables
        modules = self.is_initializing() or self.is_mutable_collection(ACTNORM_INIT)
        if self.remat != "reversible" or modules or INVERSE in self.variables:
            return self.condition(cond)
        return self.condition.one_by_one(cond)
