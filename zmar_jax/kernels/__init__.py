"""Convolutions of NHWC arrays in the forms that are fast: here, and in their gradients.

Imports: ops.
"""

from zmar_jax.kernels.composed import conv1_dw3 as conv1_dw3
from zmar_jax.kernels.dense import conv1 as conv1
from zmar_jax.kernels.dense import conv3 as conv3
from zmar_jax.kernels.depthwise import dw3 as dw3
from zmar_jax.kernels.products import gram as gram
from zmar_jax.kernels.products import gram_of as gram_of
from zmar_jax.kernels.products import mix_channels as mix_channels
from zmar_jax.kernels.taps import pad1 as pad1
