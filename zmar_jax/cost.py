"""What a program costs: arithmetic, counted from its trace (nothing is run), and memory."""

import math
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from zmar_jax.config import ModelConfig
from zmar_jax.models import ZmarSNFlow, param_shapes


def multiply_adds(fn: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of fn(*args): matrix products, convolutions and elementwise products.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def peak_memory() -> int:
    """The most memory that this process has held, bytes; an accelerator's where there is one."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restore_multiply_adds(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Multiply-adds of encoder and flow to restore one image, multiples of 8, as built here."""
    model = ZmarSNFlow(config)
    lr, mask = (jax.ShapeDtypeStruct((1, height, width, c), jnp.float32) for c in (3, 1))
    z = jax.ShapeDtypeStruct((1, height // 8, width // 8, 192), jnp.float32)

    def encode(params: Any, lr: Any, mask: Any) -> Any:
        return model.apply({"params": params}, lr, mask, method="encode")

    def decode(params: Any, z: Any, conditions: Any) -> Any:
        return model.apply({"params": params}, z, conditions, method="decode")

    params = param_shapes(config)
    conditions = jax.eval_shape(encode, params, lr, mask)
    return multiply_adds(encode, params, lr, mask), multiply_adds(decode, params, z, conditions)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(eqn) for eqn in jaxpr.eqns)


def _count_equation(eqn: core.JaxprEqn) -> int:
    out = math.prod(_shape(eqn.outvars[0])) if eqn.outvars else 0
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return out * math.prod(_shape(eqn.invars[0])[i] for i in contracted)
        case "conv_general_dilated":
            kernel = _shape(eqn.invars[1])
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            return out * math.prod(kernel) // outputs
        case "mul":
            return out
        case "scan":
            return eqn.params["length"] * _count(eqn.params["jaxpr"].jaxpr)
    return sum(_count(inner) for inner in _inner(eqn))


def _shape(value: Any) -> tuple[int, ...]:
    return getattr(value.aval, "shape", ())


def _inner(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
