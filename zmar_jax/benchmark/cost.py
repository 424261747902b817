"""What a program costs: arithmetic, counted from its trace (nothing is run), and memory."""

import functools
import math
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
    return _count(jax.make_jaxpr(fn)(*args).jaxpr, _multiply_adds)


def matrix_multiply_adds(
    fn: Callable[..., Any], *args: Any, float32_cost: float = 6
) -> tuple[int, float]:
    """Multiply-adds of fn(*args) in matrix products and convolutions, and as a chip makes them.

    The second number counts a product at HIGHEST precision, which all float32 products of the model
    are, `float32_cost` times: as many bfloat16 products, which a TPU makes of it, or as many as a
    GPU makes in the same time.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    weighted = functools.partial(_weighted_products, float32_cost)
    return _count(jaxpr, _products), _count(jaxpr, weighted)


def restore_multiply_adds(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Multiply-adds of encoder and flow to restore one image, multiples of the stride.

    Of the plain forms: on a CPU Winograd's convolutions have half of theirs.
    """
    model = ZmarSNFlow(config)
    lr, mask = (jax.ShapeDtypeStruct((1, height, width, c), jnp.float32) for c in (3, 1))
    z = jax.ShapeDtypeStruct((1, *config.latent_shape(height, width)), jnp.float32)

    def encode(params: Any, lr: Any, mask: Any) -> Any:
        return model.apply({"params": params}, lr, mask, method="features")

    def decode(params: Any, z: Any, features: Any) -> Any:
        return model.apply({"params": params}, z, features, method="decode")

    params = param_shapes(config)
    features = jax.eval_shape(encode, params, lr, mask)
    return multiply_adds(encode, params, lr, mask), multiply_adds(decode, params, z, features)


def _count(jaxpr: core.Jaxpr, rule: Callable[[core.JaxprEqn], Any]) -> Any:
    return sum(_count_equation(eqn, rule) for eqn in jaxpr.eqns)


def _count_equation(eqn: core.JaxprEqn, rule: Callable[[core.JaxprEqn], Any]) -> Any:
    inner = [_count(jaxpr, rule) for jaxpr in _inner(eqn)]
    match eqn.primitive.name:
        case "scan":
            return eqn.params["length"] * sum(inner)
        case "cond":
            # the same work in forms for different platforms: the plain one counts, even where
            # Winograd's has half the products
            platforms = eqn.params.get("branches_platforms") or ()
            return inner[platforms.index(None)] if None in platforms else min(inner)
    return sum(inner) if inner else rule(eqn)


def _multiply_adds(eqn: core.JaxprEqn) -> int:
    return _size(eqn) if eqn.primitive.name == "mul" else _products(eqn)


def _products(eqn: core.JaxprEqn) -> int:
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return _size(eqn) * math.prod(_shape(eqn.invars[0])[i] for i in contracted)
        case "conv_general_dilated":
            kernel = _shape(eqn.invars[1])
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            return _size(eqn) * math.prod(kernel) // outputs
    return 0


def _weighted_products(float32_cost: float, eqn: core.JaxprEqn) -> float:
    precise = eqn.invars and getattr(eqn.invars[0].aval, "dtype", None) == jnp.float32
    return _products(eqn) * (float32_cost if precise else 1)


def _size(eqn: core.JaxprEqn) -> int:
    return math.prod(_shape(eqn.outvars[0]))


def _shape(value: Any) -> tuple[int, ...]:
    return getattr(value.aval, "shape", ())


def _inner(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple):
            yield from (branch.jaxpr for branch in value if isinstance(branch, core.ClosedJaxpr))
