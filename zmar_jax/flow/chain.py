"""Composition: a flow step, steps scanned over stacked parameters, a level."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from zmar_jax.config import ModelConfig, Remat
from zmar_jax.flow import reversible
from zmar_jax.flow.actnorm import ACTNORM_INIT, ActNorm
from zmar_jax.flow.bijection import Bijection, Chain, chain, inverse_halo, is_pointwise
from zmar_jax.flow.condition import ConditionProjection, Factored, Projection, project, project_all
from zmar_jax.flow.coupling import Coupling, condition_width
from zmar_jax.flow.health import HEALTH
from zmar_jax.flow.invconv import INVERSE, InvConv
from zmar_jax.flow.squeeze import Squeeze
from zmar_jax.tiling.rows import WHOLE, Rows, Window

Array = jax.Array


class FlowStep(Chain, nn.Module):
    """actnorm, invconv and, if conditional, the coupling (model.md section 4)."""

    config: ModelConfig
    conditional: bool
    rows: Rows = WHOLE

    def setup(self) -> None:
        self.actnorm: ActNorm = ActNorm(self.config.actnorm_eps)
        self.invconv: InvConv = InvConv()
        if self.conditional:
            self.coupling: Coupling = Coupling(self.config)

    def bijections(self) -> list[Bijection]:
        """The step in its smallest parts."""
        coupling = self.coupling.bijections() if self.conditional else []
        return [self.actnorm, self.invconv, *coupling]

    def inverse_by_rows(self, y: Array, cond: Projection | None) -> tuple[Array, Array]:
        """`inverse` of y as `rows` has it: in stripes, or a share of the rows.

        What is pointwise is done at once. The rest, and the condition that it reads, is made in
        windows of the rows.

        Returns:
          x like y; the logdet of all rows of the image, [B].
        """
        parts = list(enumerate(self.bijections()))
        by_rows = []
        for pointwise, group in itertools.groupby(parts, lambda part: is_pointwise(part[1])):
            numbers = [number for number, _ in group]
            by_rows.append(self._at_once(numbers) if pointwise else self._in_windows(numbers))
        return chain(by_rows[::-1], y, cond)

    def _at_once(self, numbers: list[int]) -> Callable[..., tuple[Array, Array]]:
        def inverse(y: Array, cond: Projection | None) -> tuple[Array, Array]:
            x, logdet = self.inverse_of(numbers, y, None)
            return x, self.rows.total(logdet)

        return inverse

    def _in_windows(self, numbers: list[int]) -> Callable[..., tuple[Array, Array]]:
        inverse_of = self.rows.free(self.inverse_of)
        array, condition = inverse_halo([self.bijections()[n] for n in numbers])
        halo = max(array, condition + 1)  # the projection reads one row more

        def inverse(y: Array, cond: Projection) -> tuple[Array, Array]:
            def of_rows(window: Window, y: Array, features: Array) -> tuple[Array, Array]:
                projected = project(cond.replace(features=features), self.config.policy)
                x, logdet = inverse_of(numbers, y, projected)
                return window.crop(x), window.counted(window.crop(logdet)).sum(1)

            width = cond.features.shape[-1] + 3 * cond.kernel.shape[-1]
            return self.rows.apply(of_rows, y, cond.features, halo=halo, width=width, in_place=True)

        return inverse

    def inverse_of(self, numbers: list[int], y: Array, cond: Any) -> tuple[Array, Array]:
        """`inverse_rows` of the bijections with these numbers."""
        bijections = self.bijections()
        return chain([bijections[n].inverse_rows for n in reversed(numbers)], y, cond)


class FlowSteps(nn.Module):
    """`length` flow steps in one scan over stacked parameters, so that one step is compiled.

    Conditional steps take the level's `Projection`. `remat` is `TrainConfig`'s: gradients
    recompute each step's activations (`blocks`), or also its input from its output (`reversible`).
    """

    config: ModelConfig
    length: int
    conditional: bool
    remat: Remat = "none"
    rows: Rows = WHOLE

    def setup(self) -> None:
        axes = {"params": 0, ACTNORM_INIT: 0, INVERSE: 0, HEALTH: 0}
        lift = {"variable_axes": axes, "split_rngs": {"params": True}, "length": self.length}
        step = FlowStep
        if self.remat != "none":
            step = nn.remat(FlowStep, prevent_cse=False, methods=["forward", "inverse"])
        back: dict[str, Any] = lift | {"reverse": True}
        axes_of: Any = Projection  # of axes in place of arrays
        shared = {"in_axes": (axes_of(nn.broadcast, 3) if self.conditional else nn.broadcast,)}
        methods = {"forward": lift, "inverse": back, "inverse_by_rows": back | shared}
        scanned = nn.scan(step, methods=methods)
        self.step: Any = scanned(self.config, self.conditional, self.rows)

    def forward(self, x: Array, cond: Projection | None = None) -> tuple[Array, Array]:
        """x [B, H, W, C] -> (y, logdet, nats [B])."""
        cond = cond if self.conditional else None
        if self._reversible():
            return self._from_outputs("forward", x, cond)
        y, logdets = self.step.forward(x, self._shares(cond))
        return y, logdets.sum(0)

    def inverse(self, y: Array, cond: Projection | None = None) -> tuple[Array, Array]:
        """y [B, H, W, C] -> (x, logdet, nats [B])."""
        cond = cond if self.conditional else None
        if not self.rows.whole:
            # what all steps read at once would be K times D numbers a pixel
            x, logdets = self.step.inverse_by_rows(y, cond)
        elif self._reversible():
            return self._from_outputs("inverse", y, cond)
        else:
            x, logdets = self.step.inverse(y, self._shares(cond))
        return x, logdets.sum(0)

    def _shares(self, cond: Projection | None) -> Array | None:
        """What each step reads of the condition, [K, B, H, W, D]."""
        return None if cond is None else project_all(cond, self.config.policy)

    def _reversible(self) -> bool:
        # only the modules themselves can make, initialise or read variables
        own = self.is_initializing() or self.is_mutable_collection(ACTNORM_INIT)
        return self.remat == "reversible" and not own and INVERSE not in self.variables

    def _from_outputs(self, direction: str, x: Array, cond: Any) -> tuple[Array, Array]:
        step = FlowStep(self.config, self.conditional, parent=None)
        params = self.step.variables["params"]
        y, logdet, recorded = reversible.run(step, direction, params, x, cond)
        if self.is_mutable_collection(HEALTH):
            for name, values in recorded.items():
                self.step.put_variable(HEALTH, name, values)
        return y, logdet


class FlowLevel(nn.Module):
    """Squeeze, additional steps, conditional steps: [B, H, W, C] <-> [B, H/2, W/2, 4C].

    `cond` is [B, H/2, W/2, Cc] (model.md section 4), or `Factored`. `remat` is `TrainConfig`'s.
    """

    config: ModelConfig
    remat: Remat = "none"
    rows: Rows = WHOLE

    def setup(self) -> None:
        cfg = self.config
        self.squeeze: Squeeze = Squeeze()
        steps = cfg.flow_additional_steps
        self.additional: FlowSteps = FlowSteps(cfg, steps, False, self.remat, self.rows)
        project = ConditionProjection(cfg.flow_steps, condition_width(cfg))
        self.condition: ConditionProjection = project
        steps = cfg.flow_steps
        self.conditional: FlowSteps = FlowSteps(cfg, steps, True, self.remat, self.rows)

    def forward(self, x: Array, cond: Array | Factored) -> tuple[Array, Array]:
        """x -> (y, logdet, nats [B])."""
        return chain([part.forward for part in self._parts()], x, self.condition(cond))

    def inverse(self, y: Array, cond: Array | Factored) -> tuple[Array, Array]:
        """y -> (x, logdet, nats [B])."""
        return chain([part.inverse for part in self._parts()[::-1]], y, self.condition(cond))

    def _parts(self) -> list[Any]:
        return [self.squeeze, self.additional, self.conditional]
