"""Bijections: Flax modules with `forward(x, cond) -> (y, logdet)` and `inverse`."""

from zmar_jax.flow.actnorm import ActNorm as ActNorm
from zmar_jax.flow.actnorm import init_actnorm as init_actnorm
from zmar_jax.flow.chain import FlowLevel as FlowLevel
from zmar_jax.flow.chain import FlowStep as FlowStep
from zmar_jax.flow.chain import FlowSteps as FlowSteps
from zmar_jax.flow.coupling import Composed as Composed
from zmar_jax.flow.coupling import Coupling as Coupling
from zmar_jax.flow.health import HEALTH as HEALTH
from zmar_jax.flow.invconv import InvConv as InvConv
from zmar_jax.flow.invconv import invert_weights as invert_weights
from zmar_jax.flow.squeeze import Squeeze as Squeeze
