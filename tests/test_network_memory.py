"""What does not fit into memory is told before it is computed, by every command."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from zmar_jax import cli
from zmar_jax.benchmark import train as benchmark_train
from zmar_jax.config import PRESETS
from zmar_jax.evaluate import network as evaluate_network
from zmar_jax.evaluate.network import Network
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.restore import memory
from zmar_jax.restore.memory import GIB, MemoryLimitError, need
from zmar_jax.runtime import compilation
from zmar_jax.runtime import memory as runtime_memory
from zmar_jax.weights import Weights

TINY = PRESETS["tiny"]


def network(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Network:
    """Without weights: it computes nothing here."""
    monkeypatch.setattr(evaluate_network, "invert_weights", lambda params: {})
    return Network(Weights({}, TINY, "safetensors", 0, 0, ()), **options)


def test_the_largest_that_does_not_fit_is_named(monkeypatch):
    one = network(monkeypatch, memory_limit=1 * GIB)
    names, sizes = ("a", "b", "c"), ((64, 64), (3000, 4000), (2000, 3000))
    one.check(names[:1], sizes[:1])
    one.check([], [])
    expected = r"^b: 4000x3000 pixels .* GiB are allowed; make it smaller or leave it out, or say"
    with pytest.raises(MemoryLimitError, match=expected) as error:
        one.check(names, sizes)
    assert "--batch" not in str(error.value)
    with pytest.raises(MemoryLimitError, match="or less --batch"):
        network(monkeypatch, per_device=64, memory_limit=1 * GIB).check(["a"], [(400, 600)])


def test_likelihoods_take_more_and_batches_all_of_it():
    def taken(**options: Any) -> float:
        return need(TINY, 400, 600, 24 << 20, **options) - memory.PROGRAM

    # 174 165 964 bytes are what XLA counts for this program
    assert 174e6 < taken(likelihood=True) < 1.1 * 174e6
    assert taken() < taken(likelihood=True)
    assert 7 * taken(likelihood=True) < taken(batch=8, likelihood=True) < 8 * taken(likelihood=True)


def test_fewer_are_computed_at_once_where_a_megapixel_does_not_fit(monkeypatch):
    monkeypatch.setattr(evaluate_network.jax, "default_backend", lambda: "gpu")
    devices = evaluate_network.sharding.make_mesh().size
    full = [network(monkeypatch, memory_limit=limit) for limit in (16 * GIB, GIB // 4)]
    most, fewer = (one.rows(160, 160) // devices for one in full)
    assert most == 40
    assert 1 <= fewer < most


def test_score_is_told_before_it_compiles(monkeypatch, tmp_path, capsys):
    # the process would be killed, without a word
    fake = network(monkeypatch, memory_limit=1 << 20)
    monkeypatch.setattr(evaluate_network, "Network", lambda weights, **_: fake)
    for name in ("low.png", "bright.png"):
        write_photo(tmp_path / name, Photo(np.zeros((32, 32, 3), np.uint8)))
    places = ["--low", str(tmp_path / "low.png"), "--restored", str(tmp_path / "bright.png")]
    assert cli.main(["score", *places, "--memory", "1MiB"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said[0].startswith(f"error: {tmp_path}/low.png: 32x32 pixels (width x height) need")


def test_a_program_is_held_against_what_is_free(monkeypatch):
    def grow(x: Any, times: int) -> Any:
        return jnp.sort(jnp.tile(x, times)).sum()

    program = compilation.jit(grow, static_argnums=1).lower(jnp.ones(1 << 10), 1 << 10).compile()
    monkeypatch.setattr(runtime_memory, "free", lambda: 16 << 20)
    runtime_memory.check_program(program, "this", "less")
    runtime_memory.check_program(program, "this", "less", 2)
    expected = r"^this needs 0\.0 GiB of memory more than is taken already, .* free; less$"
    with pytest.raises(MemoryLimitError, match=expected):
        runtime_memory.check_program(program, "this", "less", 16)


def test_a_training_step_that_does_not_fit_is_not_timed(monkeypatch, capsys):
    class Compiled:
        def memory_analysis(self) -> Any:
            return SimpleNamespace(
                temp_size_in_bytes=900 * GIB, output_size_in_bytes=2 * GIB, alias_size_in_bytes=GIB
            )

    program = SimpleNamespace(compile=lambda *_: Compiled())
    monkeypatch.setattr(benchmark_train, "create_sharded_state", lambda *_: None)
    monkeypatch.setattr(benchmark_train, "compile_steps", lambda *_: (None, program))
    monkeypatch.setattr(benchmark_train, "multiply_adds", lambda *_: 1)
    assert cli.main(["benchmark", "train", "data.crop=16"]) == 1
    found = capsys.readouterr().err.replace("\n", " ")
    assert "a training step needs 901.0 GiB" in found
    assert "train.remat=reversible" in found
