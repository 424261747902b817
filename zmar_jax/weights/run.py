"""The weights of a training run, for whatever is not training."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from zmar_jax.config import Config, ConfigError, ModelConfig, from_dict
from zmar_jax.files.errors import brief
from zmar_jax.files.places import local
from zmar_jax.models import param_shapes
from zmar_jax.weights import folder
from zmar_jax.weights.checkpoint import CheckpointError, on_device


def load_run(
    path: str | Path, complete: Callable[[Path], object] = lambda path: None
) -> tuple[Any, ModelConfig, str]:
    """The weights of a run: of its best checkpoint, or of the newest where none was validated.

    Their moving average, where the run has one. A damaged checkpoint is passed over, and said so.

    Args:
      path: a workdir, its WORKDIR/checkpoints, or one of these, WORKDIR/checkpoints/STEP.
      complete: is called with the folder of a checkpoint before its arrays are needed.

    Returns:
      params, the model's sizes, and in words which checkpoint this is.

    Raises:
      CheckpointError: no checkpoint, or none that is whole.
    """
    path = local(path).absolute()
    inside = folder.checkpoints_of(path)
    found = [inside / str(step) for step in folder.best_first(inside, folder.steps(inside))]
    if (path / folder.DIGESTS).is_file():
        found = [path]
    passed = []
    for checkpoint in found:
        complete(checkpoint)
        problem = folder.damage(checkpoint)
        if not problem:
            params, config, kind = _read(checkpoint)
            return params, config, "; ".join([f"{kind} of step {checkpoint.name}", *passed])
        passed.append(f"step {checkpoint.name} is damaged ({problem})")
    raise CheckpointError(
        f"{path}: expected a whole checkpoint, but {'; '.join(passed) or 'none was saved yet'}"
    )


def misfits(path: Path, wanted: Any, part: str | None = None) -> str:
    """The arrays that a checkpoint lacks, has more, or holds of other shape or type; by name.

    To be asked before TensorStore is, whose threads complain after an error.

    Args:
      wanted: all arrays of the state, or of one part of it, or `jax.ShapeDtypeStruct`s.
    """
    tree = _handler().metadata(path / "state").tree
    saved, new = _kinds(tree[part] if part else tree), _kinds(wanted)
    names = sorted(name for name in {*saved, *new} if saved.get(name) != new.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@functools.cache
def _handler() -> Any:
    """A handler of the state alone: Orbax would complain of what else it does not read.

    Made when it is needed, as it uses JAX, which the processes of a run must not before they join.
    """
    return ocp.PyTreeCheckpointHandler()


def _kinds(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    def kind(leaf: Any) -> tuple[tuple[int, ...], str]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(leaf.shape), str(leaf.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): kind(leaf) for p, leaf in leaves}


def _read(path: Path) -> tuple[Any, ModelConfig, str]:
    try:
        config = from_dict(Config, folder.saved_config(path), f"{path}/config").model
        key = "params" if _handler().metadata(path / "state").tree.get("ema") is None else "ema"
        item = {key: on_device(param_shapes(config))}
        if others := misfits(path, item[key], key):
            raise CheckpointError(f"{path}: its weights are not those of its config: {others}")
        args = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        read = _handler().restore(path / "state", args=args)
    except (CheckpointError, ConfigError) as e:
        raise CheckpointError(str(e)) from e
    except Exception as e:
        raise CheckpointError(
            f"{path}: is whole, but not a run of this version of zmar_jax: {brief(e)}"
        ) from e
    return read[key], config, {"params": "weights", "ema": "moving average"}[key]
