"""Devices as a mesh, and what lies where on it.

Axis `data` splits the batch; axis `fsdp` splits the batch, too, and beside it parameters and
optimizer, which each step gathers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zmar_jax.config import ConfigError
from zmar_jax.runtime import compilation
from zmar_jax.runtime.coordination import HEARTBEAT
from zmar_jax.runtime.processes import HostLostError

BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to its run's others; must precede any other use of JAX.

    Without arguments JAX looks for the others: on TPU pods, in SLURM, Open MPI and Kubernetes jobs
    (needs the package `kubernetes`). Where it finds none, this process is the run; so it is where
    one process has been computing already.

    Args:
      coordinator: host:port of process 0; num_processes, process_id: how many, and which is this.

    Raises:
      ConfigError: an incomplete or impossible combination.
      HostLostError: others that cannot be joined.
    """
    given = (coordinator, num_processes, process_id)
    if coordinator is None or num_processes is None or process_id is None:
        if given != (None, None, None):
            raise ConfigError(
                "expected coordinator, num_processes and process_id together, or none of them, "
                f"got {coordinator}, {num_processes}, {process_id}"
            )
        return _join_detected()
    if ":" not in coordinator or not 0 <= process_id < num_processes:
        raise ConfigError(
            "expected coordinator as host:port and process_id from 0 to num_processes - 1, got "
            f"{coordinator}, process_id {process_id}, num_processes {num_processes}"
        )
    try:
        jax.distributed.initialize(
            *given, cluster_detection_method="deactivate", heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as e:
        raise HostLostError(
            f"cannot join the other processes of this run at {coordinator}: {e}"
        ) from e


def _join_detected() -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as e:
        nobody = "coordinator_address should be defined" in str(e)
        late = "must be called before" in str(e) and jax.process_count() == 1
        if not (nobody or late):
            raise HostLostError(
                f"cannot join the other processes of this run: {e} To go on with this one alone, "
                "give coordinator localhost:1234, num_processes 1, process_id 0"
            ) from e


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (of all processes) as a mesh of axes data x fsdp.

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ConfigError(
            f"train.fsdp must divide the number of devices, {len(devices)}, got {fsdp}"
        )
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf (array or ShapeDtypeStruct) of parameters or optimizer.

    Replicated where the mesh's `fsdp` axis is 1, else split over it along the largest axis that
    it divides; leaves without such an axis are replicated.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh)), tree)


def _spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes:
        return REPLICATED
    axis = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ConfigError unless each device gets equal shares of each part of a batch."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise ConfigError(
            f"data.batch_size must be a multiple of {parts} ({mesh.size} devices x "
            f"train.accumulate {accumulate}), got {batch_size}"
        )


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's examples as part of the global batch, split over all devices.

    Process by process, the examples follow each other in the global batch. Whatever is not
    numeric (names) stays behind.
    """
    sharding = NamedSharding(mesh, BATCH)
    arrays = {key: np.asarray(value) for key, value in batch.items()}
    return {
        key: jax.make_array_from_process_local_data(sharding, array)
        for key, array in arrays.items()
        if array.dtype.kind in "biuf"
    }


def jit(fn: Callable[..., Any], mesh: Mesh, **kwargs: Any) -> "Program":
    """`compilation.jit` with `mesh` in context, where `constrain` finds it."""
    return Program(compilation.jit(fn, platform(mesh), **kwargs), mesh)


def platform(mesh: Mesh) -> str:
    """The platform of its devices, which may be some that are only compiled for."""
    return mesh.devices.flat[0].platform


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function that is traced and called with its mesh in context."""

    jitted: Any
    mesh: Mesh

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.jitted(*args)

    def compile(self, *args: Any, options: dict[str, Any] | None = None) -> Any:
        """Ahead of time, for arguments like these; the result tells its memory and costs.

        Gives back to the system what the compiler has freed, which a CPU program would add to.

        Args:
          options: more XLA compiler options.
        """
        with jax.set_mesh(self.mesh):
            compiled = self.jitted.lower(*args).compile(compiler_options=options)
        compilation.trim_memory()
        return compiled


def constrain(tree: Any, spec: PartitionSpec) -> Any:
    """Asks for `spec` on every leaf inside a function that `jit` compiles; elsewhere no effect."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)


def over_batch(fn: Callable[..., Any], x: jax.Array, *others: jax.Array) -> jax.Array:
    """fn(x, *others), for what XLA cannot split itself: each device runs it on its images of x.

    Inside a function that `jit` compiles; elsewhere on all of x. `others` are whole everywhere.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return fn(x, *others)
    specs = (BATCH, *[REPLICATED] * len(others))
    return jax.shard_map(fn, in_specs=specs, out_specs=BATCH, check_vma=False)(x, *others)
