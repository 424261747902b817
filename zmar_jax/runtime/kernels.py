"""Whether this package's own TPU kernels compute what XLA could: `train.kernels`."""

import jax

from zmar_jax.config import ConfigError, Kernels
from zmar_jax.kernels.pallas import ffn

VMEM = {"TPU v4": 16 << 20, "TPU v5 lite": 128 << 20, "TPU v5": 64 << 20, "TPU v6 lite": 128 << 20}
"""Bytes of on-chip memory of a core, by JAX's name of a chip."""
FASTER = frozenset({"TPU v5 lite"})
"""Chips on which `auto` takes them, by libtpu's schedule (docs/tpu.md)."""


def pallas_runs(setting: Kernels, x: jax.Array, hidden: int) -> bool:
    """Whether a feed-forward pass of x [B, H, W, C] with so many hidden channels is ours.

    `pallas` says so for one device, and for those of the mesh in context; `auto` for a mesh in
    context alone, where each device has whole registers of images. Both want its rows in VMEM.

    Raises:
      ConfigError: `pallas`, and the devices are no TPUs.
    """
    if setting == "xla":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.abstract_device is None
    chip = jax.devices()[0].device_kind if alone else mesh.abstract_device.device_kind
    if setting == "pallas" and chip not in VMEM and not ffn.INTERPRETED:
        raise ConfigError(
            f"train.kernels=pallas needs one of {', '.join(VMEM)}, the device is {chip}; say "
            "train.kernels=auto, or xla"
        )
    images, rest = divmod(x.shape[0], 1 if mesh.empty else mesh.size)
    if rest or (setting == "auto" and (mesh.empty or chip not in FASTER or images % 8)):
        return False
    return ffn.INTERPRETED or ffn.vmem_bytes(*x.shape[2:], hidden) <= VMEM[chip]
