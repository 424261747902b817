"""Orbax checkpoints: a directory that holds params and their config."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zmar_jax.config import ConfigError, ModelConfig, from_dict, to_dict
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
    path = Path(path).absolute()
    found = _names(path) - {"_CHECKPOINT_METADATA", "commit_success.txt"}
    if path.exists() and found != _ITEMS:
        raise CheckpointError(
            f"{path}: is not a zmar_jax checkpoint and nothing else, so it is not replaced; choose "
            "another name"
        )
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(to_dict(config))
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new, old = Path(folder) / "new", Path(folder) / "old"
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save(new, items)
            if path.exists():
                path.rename(old)
            new.rename(path)
    except Exception as e:  # Orbax and TensorStore raise errors of many types
        raise CheckpointError(f"{path}: cannot be written: {brief(e)}") from e


def load_params(path: str | Path) -> tuple[Any, ModelConfig]:
    """Reads what `save_params` wrote: (params, config).

    Raises:
      CheckpointError: not such a directory, damaged, or params that do not fit the config.
    """
    path = Path(path).absolute()
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
    """Of what the folder `path` holds; none where it is no folder."""
    try:
        return {entry.name for entry in path.iterdir()}
    except OSError:
        return set()


def on_device(shapes: Any) -> Any:
    """The shapes, to be restored to this machine's first device."""
    # without a sharding, Orbax restores to the devices that the checkpoint was saved from
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def brief(error: Exception) -> str:
    """An error of Orbax or TensorStore in one short line."""
    text = " ".join(str(error).split()).partition("[tensorstore_spec")[0]
    return f"{type(error).__name__}: {text[:300]}"
