"""What must be alike on all hosts of a run: they would train on in silence, each its own way."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from zmar_jax.config import Config, to_flat, without_places
from zmar_jax.data.pipeline import Loader
from zmar_jax.train.changes import OWN
from zmar_jax.weights import Weights

PACKAGES = (
    *("zmar-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("grain", "numpy", "opencv-python-headless", "pillow"),
)
"""On whose versions numbers or what hosts tell each other depend."""


def settings(config: Config, accept_changes: bool) -> dict[str, Any]:
    """What is compared before anything else is done: configuration, versions, devices."""
    keys = to_flat(without_places(config))
    versions = {f"version of {name}": found for name, found in package_versions().items()}
    versions["version of Python"] = platform.python_version()
    return {
        **{key: value for key, value in keys.items() if key not in OWN},
        **versions,
        **_jax_settings(),
        "--accept-changes": accept_changes,
    }


def _jax_settings() -> dict[str, Any]:
    """What numbers depend on besides, and what devices compute them."""
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
    return {
        **{f"JAX setting {name}": getattr(jax.config, name) for name in names},
        "kind of device": jax.local_devices()[0].device_kind,
        "devices of a host": jax.local_device_count(),
    }


def inputs(
    train: Loader, val: Loader, weights: Weights | None, checkpoint: str | None
) -> dict[str, Any]:
    """Data, masks and beginning of a run, to be compared before the first step.

    Args:
      weights: those that the run begins from; checkpoint: the name of the newest, which it goes on
        from.
    """
    return {
        "training data": train.pictures,
        "validation data": val.pictures,
        "masks": train.masks,
        "weights in train.init": None if weights is None else weights.checksum,
        "newest checkpoint in --workdir": checkpoint,
    }


def package_versions() -> dict[str, str | None]:
    """The version of each of `PACKAGES`."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    """A package's version; None where it is not installed, or under another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
