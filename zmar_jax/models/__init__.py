"""The model: encoder, flow of bijections, and both together."""

from zmar_jax.models.zmar_snflow import ZmarSNFlow as ZmarSNFlow
from zmar_jax.models.zmar_snflow import param_shapes as param_shapes
