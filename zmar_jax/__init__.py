"""ZMAR-SNFlow, low-light restoration, in JAX: number for number with the PyTorch release."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from zmar_jax import moved as _moved

if TYPE_CHECKING:
    from zmar_jax import torch_port as torch_port
    from zmar_jax.config import ModelConfig as ModelConfig
    from zmar_jax.deploy.loading import load_exported as load_exported
    from zmar_jax.models import ZmarSNFlow as ZmarSNFlow
    from zmar_jax.restore import load_restorer as load_restorer

__version__ = "0.2.0"
_moved.install()
_HOMES = {
    "ModelConfig": "config",
    "ZmarSNFlow": "models",
    "load_exported": "deploy.loading",
    "load_restorer": "restore",
}
_ROOMS = {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}


def __getattr__(name: str) -> Any:
    """Rooms and public names, imported when asked for.

    JAX takes seconds, in which the command line would hear no Ctrl-C, and which --help can do
    without.
    """
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
