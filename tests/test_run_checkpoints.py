"""A run's checkpoints: bit for bit, the right ones kept, and what is done about damage."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.struct
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zmar_jax.cli import main
from zmar_jax.config import PRESETS, Config, TrainConfig, load_config, override
from zmar_jax.train.changes import HARMLESS
from zmar_jax.train.checkpoints import RunCheckpoints
from zmar_jax.weights import folder, load_weights
from zmar_jax.weights.checkpoint import CheckpointError

CONFIG = Config(model=PRESETS["tiny"], train=TrainConfig(keep=2))
DATA = {"epoch": 1, "next": [3, 4]}


@flax.struct.dataclass
class State:
    params: Any
    ema: Any
    opt_state: Any
    rng: jax.Array
    step: jax.Array


def state_at(step: int) -> State:
    """Arrays of several types, one of them split over all devices, with bits that are no number."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere = NamedSharding(mesh, P())

    def place(x: np.ndarray, sharding: NamedSharding = everywhere) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    bits = np.random.default_rng(step).integers(0, 2**32, (8, 3000), np.uint32).view(np.float32)
    return State(
        params={"split": place(bits, NamedSharding(mesh, P("data"))), "whole": place(bits[:2])},
        ema=None,
        opt_state=(place(bits[0].view(jnp.bfloat16)), {"count": place(np.array(step))}),
        rng=jax.random.wrap_key_data(place(bits[0, :2].view(np.uint32))),
        step=place(np.int32(step)),
    )


def bits(state: Any) -> list[tuple[str, bytes]]:
    def data(leaf: jax.Array) -> np.ndarray:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return [(str(leaf.dtype), data(leaf).tobytes()) for leaf in jax.tree.leaves(state)]


def abstract() -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0)
    )


@contextlib.contextmanager
def run(workdir: Path, config: Config = CONFIG) -> Iterator[tuple[RunCheckpoints, list[str]]]:
    warnings: list[str] = []
    with RunCheckpoints(workdir, config, warnings.append) as checkpoints:
        yield checkpoints, warnings


def save_all(workdir: Path, psnrs: dict[int, float | None], config: Config = CONFIG) -> None:
    with run(workdir, config) as (checkpoints, _):
        for step, psnr in psnrs.items():
            metrics = None if psnr is None else {"psnr": psnr, "ssim": 0.5}
            checkpoints.save(step, state_at(step), {"at": step}, metrics)


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# What is saved comes back.


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    state = state_at(7)
    with run(tmp_path) as (checkpoints, _):
        checkpoints.save(7, state, DATA)
    with run(tmp_path) as (checkpoints, warnings):
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    step, found, data = restored
    assert (step, data, warnings) == (7, DATA, [])
    assert isinstance(found, State)
    assert bits(found) == bits(state)
    assert found.params["split"].sharding == state.params["split"].sharding
    assert found.params["whole"].sharding == state.params["whole"].sharding
    jax.random.normal(found.rng)


def test_training_may_go_on_while_it_is_saved(tmp_path: Path) -> None:
    def train(state: State) -> State:
        return jax.tree.map(lambda x: x if x.dtype == state.rng.dtype else x + 1, state)

    step = jax.jit(train, donate_argnums=0)
    state = state_at(1)
    expected = bits(state)
    with run(tmp_path) as (checkpoints, _):
        checkpoints.save(1, state, DATA)
        for _ in range(10):
            state = step(state)
        jax.block_until_ready(state.params)
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert bits(restored[1]) == expected
    assert bits(state) != expected


def test_an_empty_workdir(tmp_path: Path) -> None:
    with run(tmp_path / "a" / "b") as (checkpoints, _):
        assert checkpoints.latest_good is None
        assert checkpoints.restore_latest(abstract()) is None


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with run(tmp_path) as (checkpoints, _):
        checkpoints.save(1, state_at(1), DATA, {"psnr": 20.0})
        checkpoints.save(1, state_at(2), None)
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert bits(restored[1]) == bits(state_at(1))


def test_a_state_of_another_shape_is_no_damage(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None})
    other = abstract().replace(step=jax.ShapeDtypeStruct((2,), jnp.int32))
    with run(tmp_path) as (checkpoints, _):
        with pytest.raises(CheckpointError, match=r"1: is whole, but .* other arrays: step$"):
            checkpoints.restore_latest(other)
        assert checkpoints.restore_latest(abstract()) is not None


# Which are kept.


def test_the_newest_and_the_best_are_kept_over_restarts(tmp_path: Path) -> None:
    kept = tmp_path / "checkpoints"
    save_all(tmp_path, {1: 20.0, 2: 30.0, 3: 25.0, 4: None})
    assert names(kept) == ["2", "3", "4"]
    save_all(tmp_path, {5: 29.0, 6: None, 7: None})
    assert names(kept) == ["2", "6", "7"]
    with run(tmp_path) as (checkpoints, _):
        latest = checkpoints.restore_latest(abstract())
    assert latest is not None
    assert latest[0] == 7
    assert next(iter(folder.best_first(kept, folder.steps(kept)))) == 2
    save_all(tmp_path, {8: 31.0})
    assert names(kept) == ["7", "8"]


def test_no_number_is_never_the_best(tmp_path: Path) -> None:
    save_all(tmp_path, {1: 20.0, 2: float("nan"), 3: float("inf"), 4: None, 5: None})
    assert names(tmp_path / "checkpoints") == ["1", "4", "5"]


def test_without_validation_the_newest_is_the_best(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None, 2: None})
    kept = tmp_path / "checkpoints"
    assert next(iter(folder.best_first(kept, folder.steps(kept)))) == 2
    with run(tmp_path) as (checkpoints, _):
        assert checkpoints.latest_good == kept / "2"


# Damage.


def biggest(path: Path) -> Path:
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda p: flip(biggest(p), biggest(p).stat().st_size // 2),
    "cut short": lambda p: os.truncate(biggest(p), 1000),
    "empty": lambda p: os.truncate(biggest(p), 0),
    "no data file": lambda p: biggest(p).unlink(),
    "no metadata": lambda p: (p / "state" / "_METADATA").unlink(),
    "a byte of the data's state": lambda p: flip(p / "data" / "metadata"),
    "a byte of the config": lambda p: flip(p / "config" / "metadata"),
    "no state": lambda p: shutil.rmtree(p / "state"),
    "no metrics": lambda p: shutil.rmtree(p / "metrics"),
    "metrics that are no JSON": lambda p: (p / "metrics" / "metrics").write_text("{"),
    "no digests": lambda p: (p / folder.DIGESTS).unlink(),
    "half of the digests": lambda p: os.truncate(p / folder.DIGESTS, 100),
    "digests that are a list": lambda p: (p / folder.DIGESTS).write_text("[1]"),
    "an empty folder": lambda p: (shutil.rmtree(p), p.mkdir()),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    save_all(workdir, {1: 20.0, 2: 30.0})
    return workdir


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_falls_back(healthy: Path, tmp_path: Path, kind: str) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    newest = workdir / "checkpoints" / "2"
    DAMAGE[kind](newest)
    with run(workdir) as (checkpoints, warnings):
        restored = checkpoints.restore_latest(abstract())
        assert restored is not None
        assert restored[0] == 1
        assert bits(restored[1]) == bits(state_at(1))
        (warning,) = warnings
        assert warning.startswith(f"{newest}: damaged (")
        assert names(workdir / "damaged") == ["2"]
        assert checkpoints.latest_good == workdir / "checkpoints" / "1"
        # the run comes by again
        checkpoints.save(2, state_at(2), DATA)
        again = checkpoints.restore_latest(abstract())
    assert again is not None
    assert bits(again[1]) == bits(state_at(2))
    assert len(warnings) == 1


@pytest.mark.parametrize("kind", ["cut short", "no digests", "metrics that are no JSON"])
def test_when_all_are_damaged_nothing_is_touched(healthy: Path, tmp_path: Path, kind: str) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    for step in "12":
        DAMAGE[kind](workdir / "checkpoints" / step)
    message = r"every checkpoint is damaged \(.*step 1: .*; put a copy of one back"
    with pytest.raises(CheckpointError, match=message), run(workdir) as (checkpoints, _):
        checkpoints.restore_latest(abstract())
    assert names(workdir) == ["checkpoints", "config.yaml"]
    assert names(workdir / "checkpoints") == ["1", "2"]


@pytest.mark.parametrize("text", ["{", "{}", "null", "[1]", '{"psnr": "high"}'])
def test_damaged_metrics_are_those_of_no_validation(tmp_path: Path, text: str) -> None:
    for step, metrics in ((1, '{"psnr": 20.0}'), (2, text)):
        (tmp_path / f"{step}" / "metrics").mkdir(parents=True)
        (tmp_path / f"{step}" / "metrics" / "metrics").write_text(metrics)
    assert folder.best_first(tmp_path, (1, 2)) == [1, 2]


@pytest.mark.parametrize("left", ["metrics", folder.DIGESTS, "state", ""])
def test_half_deleted_is_no_damage(tmp_path: Path, left: str) -> None:
    """What a process leaves that is killed while it deletes an old checkpoint."""
    save_all(tmp_path, {1: 30.0, 2: 20.0, 3: 20.0, 4: None})
    (first := tmp_path / "checkpoints" / "2").mkdir()
    if left:
        source = tmp_path / "checkpoints" / "3" / left
        (shutil.copytree if source.is_dir() else shutil.copy)(source, first / left)
    with run(tmp_path) as (checkpoints, warnings):
        restored = checkpoints.restore_latest(abstract())
        checkpoints.save(5, state_at(5), DATA)
    assert restored is not None
    assert restored[0] == 4
    assert warnings == []
    assert names(tmp_path) == ["checkpoints", "config.yaml"]
    assert names(tmp_path / "checkpoints") == ["1", "4", "5"]


def test_earlier_damage_keeps_its_place(healthy: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    (workdir / "damaged" / "2").mkdir(parents=True)
    DAMAGE["empty"](workdir / "checkpoints" / "2")
    with run(workdir) as (checkpoints, _):
        checkpoints.restore_latest(abstract())
    assert names(workdir / "damaged") == ["2", "2.1"]


# Sudden ends.

KILLED = """
import sys, time
import test_run_checkpoints as tests
from zmar_jax.weights import folder

with tests.run(sys.argv[1]) as (checkpoints, _):
    checkpoints.save(1, tests.state_at(1), tests.DATA)
    checkpoints.wait()
    folder.write_digests = lambda path: (print("now", flush=True), time.sleep(60))
    checkpoints.save(2, tests.state_at(2), tests.DATA)
    checkpoints.wait()
"""


def program(text: str, *args: object) -> "subprocess.Popen[str]":
    root = Path(__file__).parent
    paths = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL between the last byte of the data and the renaming."""
    with program(KILLED, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(names(tmp_path / "checkpoints")) == 2
    with run(tmp_path) as (checkpoints, warnings):
        restored = checkpoints.restore_latest(abstract())
        checkpoints.save(2, state_at(2), DATA)
    assert restored is not None
    assert (restored[0], warnings) == (1, [])
    assert bits(restored[1]) == bits(state_at(1))
    assert names(tmp_path / "checkpoints") == ["1", "2"]


def test_a_full_disk(small_disk: Path) -> None:
    filler, kept = small_disk / "filler", small_disk / "run" / "checkpoints"
    needed = sum(x.nbytes for x in jax.tree.leaves(state_at(2))) / 1e6
    with run(small_disk / "run") as (checkpoints, warnings):
        checkpoints.save(1, state_at(1), DATA)
        checkpoints.wait()
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(2, state_at(2), DATA)
        assert str(caught.value) == (
            f"{kept / '2'}: cannot be written: the disk is full; {kept / '1'} is untouched; "
            f"free {needed:.3g} MB and start again with the same --workdir"
        )
        assert names(kept) == ["1"]
        filler.unlink()
        checkpoints.save(3, state_at(3), DATA)
    assert warnings == []
    assert names(kept) == ["1", "3"]


FILLS_UP = """
import shutil, sys
from pathlib import Path
import test_run_checkpoints as tests
from zmar_jax.weights.checkpoint import CheckpointError
from zmar_jax.cli import main

disk = Path(sys.argv[1])
with tests.run(disk / "run") as (checkpoints, warnings):
    checkpoints.save(1, tests.state_at(1), tests.DATA)
    checkpoints.wait()
    checkpoints._check_room = lambda state: None  # something else fills the disk from here on
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 2**14))
    checkpoints.save(2, tests.state_at(2), tests.DATA)
    try:
        checkpoints.wait()
    except CheckpointError as e:
        print(e)
    checkpoints.save(3, tests.state_at(3), tests.DATA)
    try:
        checkpoints.save(4, tests.state_at(4), tests.DATA)
    except CheckpointError as e:
        print(e)
    print(*warnings)
    (disk / "filler").unlink()
    checkpoints.save(6, tests.state_at(6), tests.DATA)
"""


def test_a_disk_that_fills_up_while_saving(small_disk: Path) -> None:
    """In a process of its own: TensorStore's threads complain about errors after they are told."""
    with program(FILLS_UP, small_disk) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    kept = small_disk / "run" / "checkpoints"
    assert [line.partition(" is untouched;")[0] for line in lines] == [
        f"{kept / step}: cannot be written: the disk is full; {kept / '1'}" for step in "243"
    ]
    with run(small_disk / "run") as (checkpoints, _):
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert bits(restored[1]) == bits(state_at(6))
    assert names(kept) == ["1", "6"]


# Configurations.


def test_another_configuration_is_refused(healthy: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    before = (workdir / "config.yaml").read_bytes()
    settings = ["train.learning_rate=1e-4", "data.flip=none", "model.blocks=[1, 1, 1, 1]"]
    settings += ["train.ema=0.999", "train.log_every=7"]
    with pytest.raises(CheckpointError) as caught, run(workdir, override(CONFIG, settings)):
        pass
    assert str(caught.value) == (
        f"{workdir}: this run was begun with another configuration: "
        "model.blocks [2, 1, 1, 1] -> [1, 1, 1, 1], data.flip horizontal -> none, "
        "train.learning_rate 0.0002 -> 0.0001, train.ema null -> 0.999; choose another --workdir, "
        f"go on with --config {workdir}/config.yaml, or say --accept-changes"
    )
    assert (workdir / "config.yaml").read_bytes() == before
    assert load_config(workdir / "config.yaml") == CONFIG


def test_what_changes_no_number_may_change(healthy: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    values = {"data.data_dir": "elsewhere", "train.loggers": "[]"}
    other = override(CONFIG, [f"{key}={values.get(key, 5)}" for key in HARMLESS])
    with run(workdir, other) as (checkpoints, _):
        assert checkpoints.restore_latest(abstract()) is not None
        checkpoints.save(3, state_at(3), DATA)
    assert load_config(workdir / "config.yaml") == other


def test_the_same_pictures_may_be_named_by_another_path(tmp_path: Path) -> None:
    """Whether they are the same, the loader knows by their fingerprint."""
    here, there = (override(CONFIG, [f"data.folder={name}"]) for name in ("a", "../run/a"))
    save_all(tmp_path, {1: None}, here)
    with run(tmp_path, there) as (checkpoints, _):
        assert checkpoints.restore_latest(abstract()) is not None
    with pytest.raises(CheckpointError, match=r"data\.folder folder -> null"), run(tmp_path):
        pass


def accepting(workdir: Path, *settings: str) -> RunCheckpoints:
    other = override(CONFIG, settings)
    return RunCheckpoints(workdir, other, lambda _: None, accept_changes=True)


def test_a_run_that_accepted_changes_and_saved_nothing_is_as_it_was(
    healthy: Path, tmp_path: Path
) -> None:
    """As one that was killed before, or had nothing to do."""
    workdir = shutil.copytree(healthy, tmp_path / "run")
    before = (workdir / "config.yaml").read_bytes()
    for _ in range(2):
        with accepting(workdir, "train.learning_rate=1e-3") as checkpoints:
            assert checkpoints.restore_latest(abstract()) is not None
        assert (workdir / "config.yaml").read_bytes() == before
        with run(workdir) as (checkpoints, _):
            assert checkpoints.restore_latest(abstract()) is not None


def test_accepted_changes_are_the_runs_from_their_first_save_on(
    healthy: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    with accepting(workdir, "train.learning_rate=1e-3") as checkpoints:
        checkpoints.restore_latest(abstract())
        checkpoints.save(3, state_at(3), DATA)
    assert load_config(workdir / "config.yaml").train.learning_rate == 1e-3
    with pytest.raises(CheckpointError, match=r"learning_rate 0\.001 -> 0\.0002"), run(workdir):
        pass
    # a process that was killed between the two files: the checkpoint counts
    (workdir / "config.yaml").write_bytes((healthy / "config.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="choose another --workdir, or say"), run(workdir):
        pass


def test_no_accepted_change_can_change_the_arrays(healthy: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    other = abstract().replace(ema=abstract().params)
    message = (
        r"2: cannot go on with train.ema null -> 0.9, as it has other arrays: ema/split, ema/whole;"
        r" choose another --workdir, and name this run in train.init"
    )
    with accepting(workdir, "train.ema=0.9") as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_latest(other)
        assert names(workdir) == ["checkpoints", "config.yaml"]
    assert load_config(workdir / "config.yaml") == CONFIG


def test_the_checkpoint_knows_better_than_an_edited_file(healthy: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(healthy, tmp_path / "run")
    other = override(CONFIG, ["train.seed=1"])
    (workdir / "config.yaml").write_text(
        "model: {dim: 8, blocks: [2, 1, 1, 1], "
        "refinement_blocks: 2, flow_steps: 2}\ntrain: {keep: 2, seed: 1}\n"
    )
    with (
        pytest.raises(CheckpointError, match=r"another configuration: train.seed 0 -> 1;"),
        run(workdir, other) as (checkpoints, _),
    ):
        checkpoints.restore_latest(abstract())


def test_a_workdir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=r"cannot be written: NotADirectoryError: .*"),
        run(tmp_path / "file"),
    ):
        pass


# For whatever is not training.


@contextlib.contextmanager
def said_by_orbax() -> Iterator[list[str]]:
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("absl")
    handler.emit = lambda record: said.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield said
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_weights_of_a_run(tmp_path: Path) -> None:
    params, newer = golden.params("tiny", 0), golden.params("tiny", 1)
    average = jax.tree.map(lambda x: x + 1, params)
    with run(tmp_path / "run") as (checkpoints, _):
        checkpoints.save(
            3, {"params": params, "ema": average, "step": jnp.int32(3)}, DATA, {"psnr": 20}
        )
        checkpoints.save(5, {"params": newer, "ema": None, "step": jnp.int32(5)}, DATA)
    with said_by_orbax() as said:
        best = load_weights(tmp_path / "run")
    assert said == []
    assert best.config == CONFIG.model
    assert best.source == "moving average of step 3"
    assert bits(best.params) == bits(average)
    newest = load_weights(tmp_path / "run" / "checkpoints" / "5")
    assert newest.source == "weights of step 5"
    assert bits(newest.params) == bits(newer)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out.safetensors")]) == 0
    assert load_weights(tmp_path / "out.safetensors").checksum == best.checksum
    DAMAGE["cut short"](tmp_path / "run" / "checkpoints" / "3")
    passed = load_weights(tmp_path / "run")
    assert passed.source.startswith("weights of step 5; step 3 is damaged (state/")
    assert passed.checksum == newest.checksum


def test_no_weights_yet(tmp_path: Path) -> None:
    with run(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="expected a whole checkpoint, but none was saved"):
        load_weights(tmp_path)


def test_weights_of_another_program(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None})
    with pytest.raises(
        CheckpointError, match=r"1: its weights are not those of its config: .* and .* more"
    ):
        load_weights(tmp_path)
    with run(tmp_path / "other") as (checkpoints, _):
        checkpoints.save(1, {"weights": jnp.ones(3)}, DATA)
    with pytest.raises(CheckpointError, match="is whole, but not a run of this version"):
        load_weights(tmp_path / "other")


# Several processes.

TWO = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import test_run_checkpoints as tests
from zmar_jax.train.stop import stop_signal

assert jax.device_count() == 8
state = tests.state_at(1)
with stop_signal() as stop, tests.run(sys.argv[1]) as (checkpoints, _):
    if sys.argv[4] == "save":
        checkpoints.save(1, state, {"step": 1}, {"psnr": 1.0})
        checkpoints.wait()
        print("saved", flush=True)
        step = 1
        while not stop(step):
            step += 1
            jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(9)))
        checkpoints.save(step, state, {"step": step})
        checkpoints.wait()
        print(step, flush=True)
    else:
        step, found, data = checkpoints.restore_latest(tests.abstract())
        same = all(
            a.tobytes() == b.tobytes()
            for a, b in zip(tests.shards(found), tests.shards(state), strict=True)
        )
        print(json.dumps([step, data, same]), flush=True)
"""


def shards(state: State) -> list[np.ndarray]:
    leaves = jax.tree.leaves(state.params)
    return [np.asarray(s.data) for leaf in leaves for s in leaf.addressable_shards]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Each saves its shards; SIGTERM to one ends both at one step; two go on, or one."""

    def start(port: int, what: str) -> list["subprocess.Popen[str]"]:
        return [program(TWO, tmp_path, f"localhost:{port}", rank, what) for rank in (0, 1)]

    def lines(process: "subprocess.Popen[str]") -> list[str]:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return [line for line in out.splitlines() if not line.startswith("[Gloo]")]

    both = start(free_port(), "save")
    for process in both:
        assert process.stdout is not None
        assert "saved\n" in iter(process.stdout.readline, "")
    both[1].send_signal(signal.SIGTERM)
    (first,), (second,) = lines(both[0]), lines(both[1])
    assert first == second
    found = [json.loads(lines(process)[0]) for process in start(free_port(), "restore")]
    assert found == [[int(first), {"step": int(first)}, True]] * 2
    with run(tmp_path) as (c, _):
        alone = c.restore_latest(abstract())
    assert alone is not None
    assert (alone[0], alone[2]) == (int(first), {"step": int(first)})
    assert bits(alone[1]) == bits(state_at(1))


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_harmless_keys_exist() -> None:
    known = {
        f"{f.name}.{g.name}"
        for f in dataclasses.fields(CONFIG)
        for g in dataclasses.fields(getattr(CONFIG, f.name))
    }
    assert set(HARMLESS) <= known
