"""Bijections: Flax modules with `forward(x, cond) -> (y, logdet)` and `inverse`.

`bijection.Bijection` says what one is and how to add one; `initializers`, how parameters begin.

Imports: config, kernels, ops, tiling.
"""

from zmar_jax.flow.actnorm import ActNorm as ActNorm
from zmar_jax.flow.actnorm import init_actnorm as init_actnorm
from zmar_jax.flow.bijection import Bijection as Bijection
from zmar_jax.flow.chain import FlowLevel as FlowLevel
from zmar_jax.flow.chain import FlowStep as FlowStep
from zmar_jax.flow.chain import FlowSteps as FlowSteps
from zmar_jax.flow.condition import Factored as Factored
from zmar_jax.flow.condition import Projection as Projection
from zmar_jax.flow.coupling import Coupling as Coupling
from zmar_jax.flow.health import HEALTH as HEALTH
from zmar_jax.flow.invconv import InvConv as InvConv
from zmar_jax.flow.invconv import invert_weights as invert_weights
from zmar_jax.flow.squeeze import Squeeze as Squeeze
