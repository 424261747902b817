"""How much of what its chips can do a training run uses."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zmar_jax.benchmark.cost import matrix_multiply_adds
from zmar_jax.benchmark.topology import CHIPS
from zmar_jax.config import Config
from zmar_jax.models import ZmarSNFlow, param_shapes

_KINDS = {
    "TPU v4": "v4",
    **{"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"},
    **{"TPU v6 lite": "v6e", "TPU v6e": "v6e"},
}
"""What JAX calls the chips of the table (`Device.device_kind`)."""


def model_flops(config: Config) -> float:
    """Of training on one crop: three times the products of its likelihood, by convention.

    Twice of them are the gradients'. What is computed again to save memory does not count, nor the
    L1 part of the loss, nor how often a float32 product is made of bfloat16 ones.
    """
    crop = config.data.crop
    gt, lr, mask, noise = (
        jax.ShapeDtypeStruct((1, crop, crop, channels), jnp.float32) for channels in (3, 3, 1, 3)
    )
    model = ZmarSNFlow(config.model)

    def nll(params: Any, *arrays: Any) -> Any:
        return model.apply({"params": params}, *arrays, method="nll")

    params = param_shapes(config.model)
    return 3 * 2 * float(matrix_multiply_adds(nll, params, gt, lr, mask, noise)[0])


def peak_flops(devices: Sequence[Any]) -> float | None:
    """What the chips of these devices do at most, a second; None where the table has them not.

    Devices of one chip, as the cores of some are, share what it does.
    """
    names = {_KINDS.get(device.device_kind) for device in devices}
    if len(names) != 1 or (name := names.pop()) is None:
        return None
    return len({(d.process_index, *d.coords) for d in devices}) * CHIPS[name].flops


def utilization(config: Config, devices: Sequence[Any]) -> Callable[[float], float] | None:
    """From images a second to the share of the peak (MFU); None where that is not known."""
    if (peak := peak_flops(devices)) is None:
        return None
    share = model_flops(config) / peak
    return lambda images_per_second: images_per_second * share
