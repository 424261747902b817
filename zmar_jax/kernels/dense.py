"""Dense 1x1 and 3x3 convolutions. Kernels are [I, O] and HWIO."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax.kernels import tpu, winograd
from zmar_jax.kernels.taps import correlate, pad1, taps
from zmar_jax.ops import HIGHEST, by_platform, in_float32

Array = jax.Array


def conv1(x: Array, kernel: Array) -> Array:
    """1x1 convolution: [B, H, W, I] with [I, O] -> [B, H, W, O], in the dtype of x."""
    kernel = kernel.astype(x.dtype)
    return by_platform(x, kernel, tpu=_conv1, default=_conv1_of_rows)


def _conv1(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel, precision=HIGHEST)


def _conv1_of_rows(x: Array, kernel: Array) -> Array:
    """Of two axes: gradients of a product over four are five times slower on CPU, and on a TPU
    pixels in one axis are copied."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=HIGHEST)
    return flat.reshape(*x.shape[:-1], -1)


def conv3(x: Array, kernel: Array) -> Array:
    """3x3 convolution, zero padding 1: [B, H, W, I] with [3, 3, I, O], in the dtype of x."""
    return _conv3(x, kernel.astype(x.dtype))


@jax.custom_vjp
def _conv3(x: Array, kernel: Array) -> Array:
    on_cpu = winograd.conv3 if winograd.worthwhile(x) else _plain_conv3
    forms: dict[str, Callable[..., Array]] = {"cpu": in_float32(on_cpu)}
    if tpu.narrow(x.shape[-1], x.dtype):
        forms["tpu"] = tpu.conv3
    return by_platform(x, kernel, **forms, default=_plain_conv3)


def _plain_conv3(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=HIGHEST
    )


def _conv3_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dx = _conv3(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    # XLA's own is ten times slower than matmuls on CPU inside a scan; on TPU nine matmuls take
    # longer to compile, and to run; on a GPU they write and read nine copies of x, cuDNN does not
    dkernel = by_platform(
        pad1(x),
        dy,
        cpu=in_float32(winograd.conv3_weight_gradient),
        tpu=tpu.conv3_weight_gradient,
        cuda=functools.partial(correlate, precision=HIGHEST),
        default=_plain_weight_gradient,
    )
    return dx, dkernel


def _plain_weight_gradient(x: Array, dy: Array) -> Array:
    flat, inputs, outputs = dy.reshape(-1, dy.shape[-1]), x.shape[-1], dy.shape[-1]
    products = [jnp.matmul(tap.reshape(-1, inputs).T, flat, precision=HIGHEST) for tap in taps(x)]
    return jnp.stack(products).reshape(3, 3, inputs, outputs)


_conv3.defvjp(lambda x, kernel: (_conv3(x, kernel), (x, kernel)), _conv3_bwd)
