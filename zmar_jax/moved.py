"""Modules that were elsewhere in version 0.1; their old names stay good until 0.3."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

MOVED = {
    "checkpoint": "weights.checkpoint",
    "compilation": "runtime.compilation",
    "exposure": "imaging.exposure",
    "images": "imaging.images",
    "losses": "models.losses",
    "lost": "imaging.lost",
    "metrics": "imaging.metrics",
    "optimizer": "train.optimizer",
    "sample": "data.sample",
    "sharding": "runtime.sharding",
    "state": "train.state",
    "validation": "train.validation",
}
"""Old names and new ones, below zmar_jax."""


class MovedModules(MetaPathFinder, Loader):
    """Imports the module of the new name as that of the old one: both are the same object."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == "zmar_jax" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        new = MOVED[name.partition(".")[2]]
        warnings.warn(
            f"{name} is zmar_jax.{new} since version 0.2; 0.3 will not know the old name",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[name] = importlib.import_module(f"zmar_jax.{new}")


def install() -> None:
    """Makes the old names good, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
