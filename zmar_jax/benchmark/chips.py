"""What chips can do at their peaks: TPUs and GPUs that programs are compiled for, none present."""

import abc
import dataclasses
from typing import ClassVar

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip(abc.ABC):
    """One chip's peaks, as its maker publishes them (`SOURCES`).

    `flops` is of bfloat16 products, a second; a float32 product, always at HIGHEST precision here,
    takes the time of `float32_cost` of them. `hbm` is in bytes, `hbm_bandwidth` in bytes a second,
    `clock` in cycles a second. JAX sees `cores` devices.
    """

    name: str
    flops: float
    hbm: int
    hbm_bandwidth: float
    platform: ClassVar[str]
    cores: int = dataclasses.field(default=1, kw_only=True)

    @property
    @abc.abstractmethod
    def float32_cost(self) -> float: ...

    @property
    @abc.abstractmethod
    def clock(self) -> float: ...

    @abc.abstractmethod
    def injection(self, shape: tuple[int, ...]) -> float:
        """Bytes a second that the worst-placed of so many chips sends; 0 for a lone chip."""


@dataclasses.dataclass(frozen=True)
class Tpu(Chip):
    """`ici` is what one link to another chip carries in one direction, bytes a second.

    `matrix_units` of `matrix_width`**2 cells make `flops`, from which the clock follows. A
    dimension of at least `wraps` chips is a ring.
    """

    ici: float
    matrix_units: int
    matrix_width: int
    wraps: int
    platform = "tpu"

    @property
    def float32_cost(self) -> float:
        """Each factor in three bfloat16 parts, of whose nine products six count."""
        return 6.0

    @property
    def clock(self) -> float:
        """Each cell of a matrix unit does one multiply-add a cycle."""
        return self.flops / (2 * self.matrix_units * self.matrix_width**2)

    def injection(self, shape: tuple[int, ...]) -> float:
        """A chip at the edge of a dimension that is no ring has one link there."""
        links = [1 if size < self.wraps or size == 2 else 2 for size in shape if size > 1]
        return self.ici * sum(links)


@dataclasses.dataclass(frozen=True)
class Gpu(Chip):
    """`nvlink` is what a GPU sends to the others of its host, bytes a second.

    `float32_flops` is of products outside the tensor cores, where float32 stays float32. The rest
    is what XLA asks of a GPU: `product` as its driver names it, the major compute capability, its
    multiprocessors, their float32 units, and bytes of shared memory (of one, and at most of one
    block) and of the L2 cache.
    """

    nvlink: float
    float32_flops: float
    product: str
    capability: int
    multiprocessors: int
    float32_units: int
    shared_memory: int
    block_memory: int
    l2: int
    platform = "cuda"

    @property
    def float32_cost(self) -> float:
        return self.flops / self.float32_flops

    @property
    def clock(self) -> float:
        """Each float32 unit does one multiply-add a cycle."""
        return self.float32_flops / (2 * self.multiprocessors * self.float32_units)

    def injection(self, shape: tuple[int, ...]) -> float:
        """Through a switch each GPU sends as fast to one as to all."""
        return self.nvlink if max(shape) > 1 else 0.0

    def description(self) -> str:
        """XLA's GpuTargetConfigProto as text: what its driver would tell, were it here."""
        extensions = "feature_extension: ACCELERATED_FEATURES" if self.capability >= 9 else ""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_memory}
  threads_per_core_limit: 2048
  core_count: {self.multiprocessors}
  fpus_per_core: {self.float32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.hbm_bandwidth:.0f}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock / 1e9:.3f}
  device_memory_size: {self.hbm}
  shared_memory_per_block_optin: {self.block_memory}
  cuda_compute_capability {{ major: {self.capability} {extensions} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.product}"
"""


SOURCES = (
    "TPUs: Google Cloud TPU documentation, cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e: peak "
    "compute (bf16), HBM, matrix units, and bidirectional interconnect per chip (v5e 400, v5p "
    "1200, v6e 800 GB/s), here per direction and link, of which a chip has 4, 6 and 4. The page "
    "of v4 gives none: its all-reduce bandwidth per pod, 1.1 PB/s, over 4096 chips and 6 links. "
    "The page of v6e counts 2 matrix units, which would need a clock of 3.5 GHz: 4 are assumed. "
    "GPUs: NVIDIA's data sheets of the H100 SXM, H200 SXM and A100 SXM 80GB: bfloat16 without "
    "sparsity, float32, memory and bandwidth, half of NVLink's 900, 900 and 600 GB/s; limits of "
    "the device as XLA's own descriptions have them (openxla/xla, xla/backends/gpu/target_config)."
)
_H100 = (67e12, "NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 50 << 20)
_H200 = (67e12, "NVIDIA H200", *_H100[2:])
_A100 = (19.5e12, "NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 40 << 20)
CHIPS: dict[str, Tpu | Gpu] = {
    chip.name: chip
    for chip in (
        Tpu("v4", 275e12, 32 * GIB, 1.2e12, 1.1e15 / 4096 / 6, 8, 128, 4, cores=2),
        Tpu("v5e", 197e12, 16 * GIB, 0.819e12, 50e9, 4, 128, 16),
        Tpu("v5p", 459e12, 95 * GIB, 2.765e12, 100e9, 8, 128, 4),
        Tpu("v6e", 918e12, 32 * GIB, 1.638e12, 100e9, 4, 256, 16),
        Gpu("h100", 989e12, 84942979072, 3.35e12, 450e9, *_H100),
        Gpu("h200", 989e12, 151397597184, 4.8e12, 450e9, *_H200),
        Gpu("a100", 312e12, 85100068864, 2.039e12, 300e9, *_A100),
    )
}
