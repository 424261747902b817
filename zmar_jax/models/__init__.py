"""The model: encoder, flow of bijections, both together, and the losses.

`reference` is the same function, plain.

Imports: config, flow, kernels, ops, runtime, tiling.
"""

from zmar_jax.models.zmar_snflow import ZmarSNFlow as ZmarSNFlow
from zmar_jax.models.zmar_snflow import init_params as init_params
from zmar_jax.models.zmar_snflow import param_shapes as param_shapes
