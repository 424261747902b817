"""The weights of a training run, for whatever is not training."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from zmar_jax.checkpoint import CheckpointError, brief, on_device
from zmar_jax.config import Config, ConfigError, ModelConfig, from_dict
from zmar_jax.models import param_shapes
from zmar_jax.run import folder


def load_run(path: str | Path) -> tuple[Any, ModelConfig, str]:
    """The weights of a run: of its best checkpoint, or of the newest where none was validated.

    Their moving average, where the run has one. A damaged checkpoint is passed over, and said so.

    Args:
      path: a workdir, or one checkpoint, WORKDIR/checkpoints/STEP.

    Returns:
      params, the model's sizes, and in words which checkpoint this is.

    Raises:
      CheckpointError: no checkpoint, or none that is whole.
    """
    path = Path(path).absolute()
    inside = path / "checkpoints"
    found = [inside / str(step) for step in folder.best_first(inside, folder.steps(inside))]
    if (path / folder.DIGESTS).is_file():
        found = [path]
    passed = []
    for checkpoint in found:
        problem = folder.damage(checkpoint)
        if not problem:
            params, config, kind = _read(checkpoint)
            return params, config, "; ".join([f"{kind} of step {checkpoint.name}", *passed])
        passed.append(f"step {checkpoint.name} is damaged ({problem})")
    raise CheckpointError(
        f"{path}: expected a whole checkpoint, but {'; '.join(passed) or 'none was saved yet'}"
    )


def _read(path: Path) -> tuple[Any, ModelConfig, str]:
    handlers = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
    try:
        with ocp.Checkpointer(handlers) as checkpointer:
            read = checkpointer.restore(path, ocp.args.Composite(config=ocp.args.JsonRestore()))
            config = from_dict(Config, read["config"], f"{path}/config").model
            tree = checkpointer.metadata(path).item_metadata["state"].tree
            key = "params" if tree.get("ema") is None else "ema"
            item = {key: on_device(param_shapes(config))}
            args = ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            )
            read = checkpointer.restore(path, ocp.args.Composite(state=args))
    except ConfigError as e:
        raise CheckpointError(str(e)) from e
    except Exception as e:
        raise CheckpointError(
            f"{path}: is whole, but not a run of this version of zmar_jax: {brief(e)}"
        ) from e
    return read["state"][key], config, {"params": "weights", "ema": "moving average"}[key]
