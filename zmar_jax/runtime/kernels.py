"""Whether this package's own TPU kernels compute what XLA could: `train.kernels`."""

import jax
import jax.numpy as jnp

from zmar_jax.config import ConfigError, Kernels
from zmar_jax.kernels.pallas import ffn
from zmar_jax.kernels.pallas.parts import IMAGES

VMEM = {"TPU v4": 16 << 20, "TPU v5 lite": 128 << 20, "TPU v5": 64 << 20, "TPU v6 lite": 128 << 20}
"""Bytes of on-chip memory of a core, by JAX's name of a chip."""
FASTER: frozenset[str] = frozenset()
"""Chips on which `auto` takes them: none until a TPU has run them. By libtpu's schedule of bfloat16
(docs/tpu.md) it is to be "TPU v5 lite"."""


def pallas_runs(setting: Kernels, x: jax.Array, hidden: int) -> bool:
    """Whether a feed-forward pass of x [B, H, W, C] with so many hidden channels is ours.

    With a mesh in context each of its devices runs the kernel on its images. `auto` wants such a
    mesh, a chip of FASTER, bfloat16, and whole registers of images. Rows that do not fit the VMEM
    are XLA's whatever is said.

    Raises:
      ConfigError: `pallas`, and the devices are no TPUs that are known here.
    """
    if setting == "xla":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    chip = (device or jax.devices()[0]).device_kind
    if setting == "pallas" and chip not in VMEM and not ffn.INTERPRETED:
        raise ConfigError(
            f"train.kernels=pallas needs one of {', '.join(VMEM)}, the device is {chip}; say "
            "train.kernels=auto, or xla"
        )
    images, rest = divmod(x.shape[0], 1 if mesh.empty else mesh.size)
    fast = chip in FASTER and x.dtype == jnp.bfloat16 and images % IMAGES == 0
    if rest or (setting == "auto" and (mesh.empty or not fast)):
        return False
    _, _, width, channels = x.shape
    return ffn.INTERPRETED or ffn.vmem_bytes(width, channels, hidden) <= VMEM[chip]
