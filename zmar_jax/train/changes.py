"""What a run may change when it goes on, and what each host may have for itself: all is here.

Besides what `config.without_places` leaves out: pictures, masks and first weights are compared by
their content, wherever they lie. Not part of the configuration, and free to change, are --workdir,
the kind and number of devices and of hosts, and which of them holds what.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zmar_jax.config import (
    Config,
    ConfigError,
    from_dict,
    load_config,
    to_flat,
    without_places,
)

CONFIG = "config.yaml"
OWN = ("data.workers", "data.data_dir", "data.cache_gib")
"""Keys that each host may choose for itself: where prepared data lies, who reads it, and whether
it is decoded once."""
HARMLESS = (
    *OWN,
    "train.checkpoint_every",
    "train.fsdp",
    "train.keep",
    "train.log_every",
    "train.loggers",
    "train.max_bad_steps",
    "train.validate_every",
)
"""Keys that a run may change when it goes on: they decide what is seen and kept, and where data and
parameters lie, never what is computed. The schedule depends on `train.steps`, which is none."""


def refusal(workdir: Path, path: Path, saved: Mapping[str, Any], config: Config) -> str:
    """What speaks against going on from a checkpoint with this configuration; "" if nothing.

    Args:
      saved: the configuration that the checkpoint `path` was made with.
    """
    before = from_dict(Config, saved, f"{path}/config")
    if not (changed := ", ".join(changes(before, config))):
        return ""
    known = workdir / CONFIG
    as_before = f"go on with --config {known}, " if holds(known, before) else ""
    return (
        f"{workdir}: this run was begun with another configuration: {changed}; "
        f"choose another --workdir, {as_before}or say --accept-changes"
    )


def changes(before: Config, now: Config) -> list[str]:
    """Each key that differs and may not, with both values."""
    old, new = (to_flat(without_places(each)) for each in (before, now))
    return [
        f"{key} {_shown(old[key])} -> {_shown(value)}"
        for key, value in new.items()
        if old[key] != value and key not in HARMLESS
    ]


def holds(file: Path, config: Config) -> bool:
    """Whether a file is there and says the same configuration."""
    try:
        return load_config(file) == config
    except ConfigError:
        return False


def _shown(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]
