"""Options of the compiler, and where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from zmar_jax.runtime import compilation


@pytest.fixture
def unconfigured():
    """No cache is configured; what the tests' session configured comes back."""
    configured = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", configured)


@pytest.mark.usefixtures("unconfigured")
@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "home/.cache/zmar_jax"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/zmar_jax"),
        ({"XDG_CACHE_HOME": "xdg", "ZMAR_JAX_CACHE": "mine"}, "mine"),
    ],
)
def test_the_cache_is_where_the_environment_says(variables, folder, monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", compilation.CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "home"} | variables).items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert compilation.enable_cache() == tmp_path / folder
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / folder)


@pytest.mark.usefixtures("unconfigured")
def test_a_cache_that_cannot_be_written_is_warned_of_and_left_out(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(compilation.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    expected = r"file/cache: compiled programs cannot be kept here .*; name another folder in"
    with pytest.warns(UserWarning, match=expected):
        assert compilation.enable_cache() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_options_are_taken_where_xla_has_them(monkeypatch):
    known = compilation.cpu_options()
    assert known
    monkeypatch.setitem(compilation.CPU_OPTIONS, "xla_cpu_never_heard_of", True)
    assert compilation.cpu_options() == known
    assert compilation.jit(lambda: 1)() == 1


def test_less_effort_is_asked_for_in_words_that_xla_has():
    assert compilation.effort_options(0.0) == {}
    options = compilation.effort_options(-1.0)
    assert len(options) == 1
    assert jax.jit(lambda: 1).lower().compile(compiler_options=options)() == 1


def test_options_are_asked_for_on_a_cpu_alone(monkeypatch):
    monkeypatch.setattr(compilation, "cpu_options", lambda: {"xla_cpu_never_heard_of": True})
    assert compilation.jit(lambda: 1, "tpu")() == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="never_heard_of"):
        compilation.jit(lambda: 1, "cpu")()


def test_a_cache_that_is_configured_stays(monkeypatch, tmp_path):
    configured = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv(compilation.CACHE_VARIABLE, str(tmp_path))
    assert compilation.enable_cache() == Path(configured)
    assert jax.config.values["jax_compilation_cache_dir"] == configured


def test_batches_are_bounded_everywhere_and_training_in_stripes_is_for_cpus() -> None:
    """By `memory.need` 12 megapixels, whole, would take about 50 GiB."""
    found = {
        p: [compilation.stripe_bytes(p, training) for training in (False, True)]
        for p in ("cpu", "gpu", "tpu")
    }
    assert all(evaluating for evaluating, _ in found.values())
    assert [training is None for _, training in found.values()] == [False, True, True]
