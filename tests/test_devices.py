"""Devices that JAX_PLATFORMS names and that are not there: one line, whatever JAX says."""

from types import SimpleNamespace

import jax
import pytest

from zmar_jax import cli
from zmar_jax.runtime.devices import missing_devices
from zmar_jax.weights.checkpoint import CheckpointError

NO_BACKEND = (RuntimeError("Unable to initialize backend 'rocm'"), AssertionError())


@pytest.fixture(params=NO_BACKEND, ids=["said", "wordless"])
def absent(request, monkeypatch):
    """jax with JAX_PLATFORMS=cuda on a machine without: what `jax.devices()` raises."""

    def devices() -> list:
        if jax.config.values["jax_platforms"] == "cuda":
            raise request.param
        return [SimpleNamespace(platform="cpu")]

    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(jax, "devices", devices)
    jax.config.update("jax_platforms", "cuda")
    yield request.param
    assert jax.config.values["jax_platforms"] == "cuda"
    jax.config.update("jax_platforms", before)


def test_the_command_line_says_which_there_are(absent, monkeypatch, capsys):
    def fails(**_):
        # as reading a checkpoint to a device that is not there
        raise CheckpointError("weights: damaged") from absent

    monkeypatch.setattr(cli.app, "cli", fails)
    assert cli.main(["info", "weights"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: JAX_PLATFORMS=cuda: no such device can be used here")
    for word in ("there is 1 x cpu", "install zmar-jax[cuda]"):
        assert word in told
    assert len(told.splitlines()) == 1


def test_other_errors_are_not_of_devices(absent):
    assert missing_devices(ValueError("a")) is None
    jax.config.update("jax_platforms", "cpu")
    assert missing_devices(RuntimeError("a")) is None
    jax.config.update("jax_platforms", "cuda")
