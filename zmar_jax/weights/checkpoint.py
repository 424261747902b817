"""Orbax checkpoints: a directory that holds params and their config."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zmar_jax.config import ConfigError, ModelConfig, from_dict, to_dict
from zmar_jax.files.errors import brief, errors_as
from zmar_jax.files.places import local
from zmar_jax.files.replacing import whole_folder
from zmar_jax.models import param_shapes

_ITEMS = {"config", "params"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; one line that names it and what to do."""


def save_params(path: str | Path, params: Any, config: ModelConfig) -> None:
    """Writes params and config to the directory `path`, replacing a checkpoint there.

    The new one is written beside it, whole, before the old one goes.

    Raises:
      CheckpointError: it could not be written, or `path` is anything but such a checkpoint.
    """
    path = local(path).absolute()
    found = _names(path) - {"_CHECKPOINT_METADATA", "commit_success.txt"}
    if path.exists() and found != _ITEMS:
        raise CheckpointError(
            f"{path}: is not a zmar_jax checkpoint and nothing else, so it is not replaced; choose "
            "another name"
        )
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(to_dict(config))
    )
    # Orbax and TensorStore raise errors of many types
    with errors_as(CheckpointError, lambda e: f"{path}: cannot be written: {brief(e)}"):
        checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        with whole_folder(path) as new, checkpointer:
            checkpointer.save(new, items, force=True)  # it is there, and empty


def load_params(path: str | Path) -> tuple[Any, ModelConfig]:
    """Reads what `save_params` wrote: (params, config).

    Raises:
      CheckpointError: not such a directory, damaged, or params that do not fit the config.
    """
    path = local(path).absolute()
    if _ITEMS - _names(path):  # what else is there, as .DS_Store, harms nobody
        raise CheckpointError(
            f"{path}: not a zmar_jax checkpoint (expected folders params/ and config/); "
            "give a directory made by `zmar-jax convert`"
        )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            read = checkpointer.restore(path, ocp.args.Composite(config=ocp.args.JsonRestore()))
            config = from_dict(ModelConfig, read["config"], f"{path}/config")
            args = ocp.args.StandardRestore(on_device(param_shapes(config)))
            read = checkpointer.restore(path, ocp.args.Composite(params=args))
    except ConfigError as e:
        raise CheckpointError(str(e)) from e
    except Exception as e:
        raise CheckpointError(
            f"{path}: damaged, or of other sizes than its config says; convert the weights again: "
            f"{brief(e)}"
        ) from e
    return read["params"], config


def _names(path: Path) -> set[str]:
    """Names of what the folder `path` holds; none where it is no folder."""
    try:
        return {entry.name for entry in path.iterdir()}
    except OSError:
        return set()


def on_device(shapes: Any) -> Any:
    """The shapes, to be restored to this machine's first device."""
    # without a sharding, Orbax restores to the devices that the checkpoint was saved from
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)
