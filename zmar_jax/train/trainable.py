"""Which parameters a run trains: `train.trainable`, a regular expression on their names."""

import re
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax.config import ConfigError


def trained(params: Any, pattern: str | None) -> Any:
    """Which leaves are trained: a tree of bools like `params`, whose values it does not read.

    Args:
      pattern: matches the whole name of each, as `flow/level1/condition/kernel`; None matches all.

    Raises:
      ConfigError: it matches no parameter.
    """
    names = flatten_dict(params, sep="/")
    chosen = {name: pattern is None or bool(re.fullmatch(pattern, name)) for name in names}
    if not any(chosen.values()):
        parts = sorted({"/".join(name.split("/")[:2]) for name in names})
        raise ConfigError(
            f"train.trainable {pattern!r} matches no parameter; say flow/.*, encoder/.*, or "
            f"more of a name that begins with one of {', '.join(parts)}"
        )
    return unflatten_dict(chosen, sep="/")


def frozen_stopped(params: Any, pattern: str | None) -> Any:
    """The params; no gradient reaches those that are not trained, and none is computed for them."""
    if pattern is None:
        return params
    stopped = lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf)  # noqa: E731
    return jax.tree.map(stopped, params, trained(params, pattern))


def changed(old: Any, new: Any, pattern: str | None) -> Any:
    """`new` where it is trained, else `old`, bit for bit."""
    if pattern is None:
        return new
    return jax.tree.map(lambda o, n, train: n if train else o, old, new, trained(old, pattern))
