"""Which devices there are, and which were asked for in vain."""

import collections
from collections.abc import Iterator

import jax

EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
"""Of this package's extras the one that brings JAX's plugin for a platform."""


def missing_devices(error: Exception) -> str | None:
    """One line for the user where `error` is of devices that JAX_PLATFORMS names and are not there.

    JAX says it with a RuntimeError, or an AssertionError without words, and somebody may have
    taken that for a damaged file; so its causes are looked at, and JAX is asked again.
    """
    wanted = jax.config.values["jax_platforms"]
    if not wanted or not any(isinstance(e, RuntimeError | AssertionError) for e in _causes(error)):
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        extras = sorted({EXTRAS[name] for name in wanted.split(",") if name in EXTRAS})
        install = "".join(f"install zmar-jax[{extra}], or " for extra in extras)
        return (
            f"JAX_PLATFORMS={wanted}: no such device can be used here, there is {_there(wanted)}; "
            f"{install}leave JAX_PLATFORMS out to take what there is"
        )
    return None


def _there(wanted: str) -> str:
    """The devices that there are, as `2 x cuda`, whatever was asked for."""
    jax.config.update("jax_platforms", None)
    try:
        found = collections.Counter(device.platform for device in jax.devices())
    finally:
        jax.config.update("jax_platforms", wanted)
    return ", ".join(f"{count} x {platform}" for platform, count in found.items())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
