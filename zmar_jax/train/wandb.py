"""Weights & Biases, which is told what TensorBoard is told (`train.loggers`)."""

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zmar_jax.config import ConfigError
from zmar_jax.files.errors import brief, errors_as


class Wandb:
    """A run there, with the name of the workdir, which the next start goes on with.

    Who is logged in, the project and whether there is a network is told by wandb's own variables
    (`WANDB_API_KEY`, `WANDB_PROJECT`, `WANDB_MODE=offline`). Its files go to WORKDIR/wandb.
    """

    def __init__(self, workdir: Path, about: Mapping[str, Any]):
        """about: what is shown beside the run, its configuration in it.

        Raises:
          ConfigError: wandb is not installed, or does not let the run begin.
        """
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "train.loggers has wandb, which is not installed: pip install 'zmar-jax[wandb]' "
                "(in a clone: pip install '.[wandb]'), or leave it out"
            )
        wandb: Any = importlib.import_module("wandb")
        place = str(about.get("workdir", workdir))
        with errors_as(ConfigError, lambda e: f"train.loggers: wandb cannot begin: {brief(e)}"):
            self._run = wandb.init(
                dir=str(workdir),
                name=place.rpartition("/")[2],
                id=hashlib.blake2b(place.encode(), digest_size=8).hexdigest(),
                resume="allow",
                config=dict(about),
                settings=wandb.Settings(silent=True),
            )
            # steps that are done again have been told before: wandb's own count cannot go back
            self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Returns when all is written."""
        self._run.finish()
