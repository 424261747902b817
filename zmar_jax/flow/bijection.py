"""What a bijection is, and how several follow each other."""

from collections.abc import Sequence
from typing import Any

import jax

Array = jax.Array


class Bijection:
    """An invertible map of arrays [B, H, W, C] under a condition [B, H, W, D].

    To add one to the flow:

    1. Subclass this, and `flax.linen.Module` if it has parameters, in a file of its own. Write
       `forward_rows`, `inverse_rows`, `halo` and `cond_halo`. Both directions take their
       parameters from one method, which declares each by `self.param(name, init, shape)` with an
       initialiser of `zmar_jax.flow.initializers`.
    2. Put it into the list that `Coupling.bijections` or `FlowStep.bijections` returns.
    3. If its weights shall have names in files, name them in `torch_port/keys.py`.

    The rest follows from that: `forward` and `inverse`, the inverse in stripes and on several
    devices, gradients that recompute inputs from outputs (`reversible`), and initialisation. What
    reads more rows than neighbouring devices have is refused (`tiling.shares.LEAST`).

    A part that every model shall have, or that a setting switches on, is also a fact of the model:
    docs/model.md and `models/reference.py` have it first (with its parameters,
    `models/reference_init.py`), and a setting is a field of `ModelConfig` that
    `torch_port.port.infer_config` reads off the names.
    """

    halo: int
    """How many rows on each side of a row of x its y depends on, and the other way round."""
    cond_halo: int | None
    """The same for the rows of the condition; None if it does not read the condition."""

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        """x -> (y, logdet of each row: [B, H], nats, float32 at least)."""
        raise NotImplementedError

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        """y -> (x, logdet of each row: [B, H]), where x gives y in `forward_rows`."""
        raise NotImplementedError

    def forward(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        """x [B, H, W, C] -> (y, logdet = log|det dy/dx|, nats [B])."""
        y, logdet = self.forward_rows(x, cond)
        return y, logdet.sum(1)

    def inverse(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        """y [B, H, W, C] -> (x, logdet = log|det dx/dy|, nats [B])."""
        x, logdet = self.inverse_rows(y, cond)
        return x, logdet.sum(1)


class Chain(Bijection):
    """The bijections of a list, one after the other; their log-determinants add up."""

    def bijections(self) -> list[Bijection]:
        """In the order of the forward direction."""
        raise NotImplementedError

    def forward_rows(self, x: Array, cond: Any = None) -> tuple[Array, Array]:
        return chain([b.forward_rows for b in self.bijections()], x, cond)

    def inverse_rows(self, y: Array, cond: Any = None) -> tuple[Array, Array]:
        return chain([b.inverse_rows for b in reversed(self.bijections())], y, cond)


def chain(directions: Sequence[Any], x: Array, cond: Any) -> tuple[Array, Array]:
    """Functions (array, cond) -> (array, logdet), one after the other; the logdets' sum."""
    logdets = []
    for direction in directions:
        x, logdet = direction(x, cond)
        logdets.append(logdet)
    return x, sum(logdets[1:], logdets[0])


def is_pointwise(bijection: Bijection) -> bool:
    """Whether each row depends on that row of the array alone, whatever the condition."""
    return not bijection.halo and bijection.cond_halo is None


def inverse_halo(bijections: Sequence[Bijection]) -> tuple[int, int]:
    """Rows around those that the inverse of all shall have: of the array, and of the condition."""
    array = condition = 0
    for bijection in bijections:  # the inverse runs from the last to the first
        if bijection.cond_halo is not None:
            condition = max(condition, array + bijection.cond_halo)
        array += bijection.halo
    return array, condition
