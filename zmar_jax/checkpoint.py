"""Orbax checkpoints: a directory that holds params and their config."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zmar_jax.config import ConfigError, ModelConfig, from_dict, to_dict
from zmar_jax.models import param_shapes


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; one line that names it and what to do."""


def save_params(path: str | Path, params: Any, config: ModelConfig) -> None:
    """Writes params and config to the directory `path`, replacing a checkpoint there.

    Orbax writes beside it and renames, so a crash leaves the old checkpoint or none.

    Raises:
      CheckpointError: it could not be written.
    """
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(to_dict(config))
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(Path(path).absolute(), items, force=True)
    except Exception as e:  # Orbax and TensorStore raise errors of many types
        raise CheckpointError(f"{path}: cannot be written: {_brief(e)}") from e


def load_params(path: str | Path) -> tuple[Any, ModelConfig]:
    """Reads what `save_params` wrote: (params, config).

    Raises:
      CheckpointError: not such a directory, damaged, or params that do not fit the config.
    """
    path = Path(path).absolute()
    if not (path / "config").is_dir() or not (path / "params").is_dir():
        raise CheckpointError(
            f"{path}: not a zmar_jax checkpoint (expected folders params/ and config/); "
            "give a directory made by `zmar-jax convert`"
        )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            read = checkpointer.restore(path, ocp.args.Composite(config=ocp.args.JsonRestore()))
            config = from_dict(ModelConfig, read["config"], f"{path}/config")
            args = ocp.args.StandardRestore(_on_device(param_shapes(config)))
            read = checkpointer.restore(path, ocp.args.Composite(params=args))
    except ConfigError as e:
        raise CheckpointError(str(e)) from e
    except Exception as e:
        raise CheckpointError(
            f"{path}: damaged, or of other sizes than its config says; convert the weights again: "
            f"{_brief(e)}"
        ) from e
    return read["params"], config


def _on_device(shapes: Any) -> Any:
    # without a sharding, Orbax restores to the devices that the checkpoint was saved from
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
