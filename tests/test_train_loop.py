"""Runs: begun, stopped, killed, damaged, resumed; what they write, and what they refuse."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import training
import yaml
from PIL import Image

from zmar_jax import ZmarSNFlow, cli, ops
from zmar_jax.config import PRESETS, Config, ConfigError, DataConfig, TrainConfig, to_dict
from zmar_jax.data import DataError
from zmar_jax.data.pipeline import Loader, make_loader
from zmar_jax.imaging.images import read_photo
from zmar_jax.runtime import compilation, memory, processes
from zmar_jax.runtime.processes import ProcessError
from zmar_jax.torch_port import read_state_dict
from zmar_jax.train import TrainingError, loop, train
from zmar_jax.train.validation import Validator
from zmar_jax.weights import Weights, load_weights, save_weights

ROOT = Path(__file__).parents[1]
STEPS = 4
# the loop is the same for every model, and one without masks compiles faster
MODEL = dataclasses.replace(training.MODEL, mask_attention=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.png")
    data = DataConfig(
        folder=str(folder), val_folder=str(folder), data_dir=str(folder / "data"), batch_size=4,
        crop=16, workers=0,
    )  # fmt: skip
    recipe = TrainConfig(
        steps=STEPS, learning_rate=1e-3, warmup_steps=2, schedule="constant", ema=0.9, log_every=2,
        validate_every=3, checkpoint_every=4, keep=10,
    )  # fmt: skip
    return Config(model=MODEL, data=data, train=recipe)


@pytest.fixture(scope="module", autouse=True)
def _shared_programs() -> Iterator[None]:
    with training.shared_programs():
        yield


@pytest.fixture(scope="module")
def validated() -> list[dict[str, bytes]]:
    """The weights that the run `whole` validated."""
    return []


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory, validated) -> Path:
    """The workdir of a run that nothing interrupted."""

    def watched(validator: Validator, params: Any) -> Any:
        validated.append(flat(params))
        return validate(validator, params)

    validate = Validator.__call__
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "__call__", watched)
        assert train(config, workdir) == STEPS
    return workdir


def changed(config: Config, **recipe: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **recipe))


def leaves(workdir: Path, step: int = STEPS) -> dict[str, bytes]:
    return flat(saved(workdir, step))


def saved(workdir: Path, step: int) -> Any:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute())


def flat(tree: Any) -> dict[str, bytes]:
    found, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in found}


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The run is stopped, as by SIGTERM, when it has done so many steps."""
    monkeypatch.setattr(loop, "stop_signal", lambda: _Stop(steps))


class _Stop:
    def __init__(self, steps: int):
        self._steps = steps

    def __enter__(self) -> Any:
        return lambda step: step >= self._steps

    def __exit__(self, *_: object) -> None: ...


def test_what_a_run_writes(whole: Path) -> None:
    found = records(whole)
    assert [r["step"] for r in found if "loss" in r] == [2, 4]
    assert [r["step"] for r in found if "val_psnr" in r] == [1, 3, 4]
    assert all(0 < r["val_psnr"] < 60 and r["val_psnr_input"] > 0 for r in found if "val_psnr" in r)
    logged = next(r for r in found if "loss" in r)
    expected = {"loss", "nll", "bits_per_dim", "grad_norm", "learning_rate", "scale_min"}
    expected |= {"condition_max", "log_det_min", "skipped", "images_per_second", "memory_bytes"}
    assert expected <= logged.keys()
    panel = read_photo(whole / "panels" / f"{STEPS:06}.png").rgb
    assert panel.shape == (4 * 32 + 3 * 4, 3 * 40 + 2 * 4, 3)
    assert list((whole / "tensorboard").iterdir())
    assert (whole / "config.yaml").exists()


def test_validation_scores_the_moving_average(whole: Path, validated) -> None:
    found = leaves(whole)
    assert len(validated) == 3
    assert validated[-1] == {key: found[f"['ema']{key}"] for key in validated[-1]}
    assert validated[-1] != {key: found[f"['params']{key}"] for key in validated[-1]}


@pytest.mark.slow
def test_training_lowers_the_loss(config: Config, tmp_path: Path) -> None:
    longer = changed(config, steps=20, validate_every=100, checkpoint_every=100)
    train(longer, tmp_path)
    nll = [r["nll"] for r in records(tmp_path) if "nll" in r]
    assert np.mean(nll[-3:]) < np.mean(nll[:3]) - 0.5


@pytest.fixture(scope="module")
def stopped(config: Config, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the same run, stopped after its first two steps."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert train(config, workdir) == 2
    return workdir


def test_a_stopped_run_goes_on_bit_for_bit(config, whole, stopped, tmp_path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    assert train(config, run) == STEPS
    assert leaves(run) == leaves(whole)
    timed = ("seconds", "memory", "per_second", "time", "goodput", "lost_")
    found, expected = (
        [{k: v for k, v in r.items() if not any(t in k for t in timed)} for r in records(w)]
        for w in (run, whole)
    )
    assert [r for r in found if "loss" in r] == [r for r in expected if "loss" in r]


def test_one_device_goes_on_where_four_were(
    config: Config, whole: Path, stopped: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    make_mesh = loop.sharding.make_mesh
    monkeypatch.setattr(loop.sharding, "make_mesh", lambda fsdp: make_mesh(fsdp, jax.devices()[:1]))
    assert train(config, tmp_path / "run") == STEPS
    found, expected = (
        {r["step"]: r["loss"] for r in records(w) if "loss" in r} for w in (tmp_path / "run", whole)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_step_of_four_devices_is_that_of_one(config, stopped) -> None:
    """The loss, and its slope along what Adam took for the gradient, of the whole batch."""
    loader = make_loader(config.data, "train")
    next(loader)
    batch = next(loader)
    rng = jax.random.fold_in(jax.random.key(config.train.seed), 1)

    @compilation.jit
    def mean_nll(params: Any, low: jax.Array, gt: jax.Array) -> jax.Array:
        noise = jax.random.uniform(jax.random.fold_in(rng, 1), gt.shape) - 0.5
        inputs = ops.to_unit(gt), *ops.network_input(low), noise
        return ZmarSNFlow(config.model).apply({"params": params}, *inputs, method="nll").mean()

    def loss(params: Any) -> float:
        return float(mean_nll(params, batch["low"], batch["gt"]))

    params = saved(stopped, 1)["params"]
    mean = optax.tree.get(saved(stopped, 2)["opt_state"], "mu")
    (record,) = [r for r in records(stopped) if "loss" in r]
    np.testing.assert_allclose(record["loss"], loss(params), rtol=1e-5)
    length = np.sqrt(sum(np.vdot(leaf, leaf) for leaf in jax.tree.leaves(mean)))
    ends = [
        loss(jax.tree.map(lambda p, m, e=eps: np.float32(p + e * m / length), params, mean))
        for eps in (1e-2, -1e-2)
    ]
    np.testing.assert_allclose(record["grad_norm"], (ends[0] - ends[1]) / 2e-2, rtol=1e-2)


def test_the_last_step_has_scores_though_only_a_checkpoint_is_due(config, whole) -> None:
    assert STEPS % config.train.validate_every != 0 == STEPS % config.train.checkpoint_every
    saved = whole / "checkpoints" / str(STEPS) / "metrics" / "metrics"
    assert json.loads(saved.read_text())["psnr"] == records(whole)[-1]["val_psnr"]


def test_a_finished_run_says_so_and_changes_nothing(config, whole, capsys) -> None:
    before = leaves(whole)
    assert train(config, whole) == STEPS
    assert f"all {STEPS} steps are trained; for more" in capsys.readouterr().err
    assert leaves(whole) == before


def test_a_damaged_checkpoint_costs_only_its_steps(config, whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    files = (run / "checkpoints" / str(STEPS) / "state").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert train(config, run) == STEPS
    error = capfd.readouterr().err
    assert "damaged" in error
    assert "resumed at step 3" in error
    assert leaves(run) == leaves(whole)


def test_another_configuration_is_refused(config, whole) -> None:
    with pytest.raises(ValueError, match=r"train\.learning_rate 0\.001 -> 0\.1"):
        train(changed(config, learning_rate=0.1), whole)


@pytest.mark.slow
def test_accepted_changes_go_on(config, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        train(config, tmp_path)
    slower = changed(config, learning_rate=1e-4)
    with pytest.raises(ValueError, match="say --accept-changes"):
        train(slower, tmp_path)
    assert train(slower, tmp_path, accept_changes=True) == STEPS


def test_other_pictures_are_refused(config, whole, tmp_path) -> None:
    for path in Path(str(config.data.folder)).glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (40, 32)).save(tmp_path / "0.png")
    data = dataclasses.replace(config.data, folder=str(tmp_path))
    other = dataclasses.replace(config, data=data)
    with pytest.raises(ValueError, match="not those that this run was begun with"):
        train(other, whole, accept_changes=True)
    data = dataclasses.replace(config.data, val_folder=str(tmp_path))
    with pytest.raises(ValueError, match="the validation pictures are not those"):
        train(dataclasses.replace(config, data=data), whole)


def test_hosts_must_see_the_same_pictures(config, tmp_path, monkeypatch) -> None:
    """Another host, which says the same but of its pictures."""
    ours = make_loader(config.data, "train").pictures
    monkeypatch.setattr(processes, "gather", lambda text: [text, text.replace(ours, "others")])
    with pytest.raises(ProcessError, match=r"do not see the same:\n +training data .*others"):
        train(config, tmp_path)


def test_a_run_that_saved_nothing_may_begin_otherwise(config, tmp_path, monkeypatch) -> None:
    data = dataclasses.replace(config.data, folder="/nowhere")
    with pytest.raises(ValueError, match="/nowhere"):
        train(dataclasses.replace(config, data=data), tmp_path)
    stop_after(monkeypatch, 0)
    assert train(config, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_run_begins_from_weights(
    config: Config, whole: Path, tmp_path: Path, fsdp: int, capsys
) -> None:
    """They are those after the first step, which only initialises; later starts need them not."""
    weights, file = load_weights(whole), tmp_path / "weights.safetensors"
    exposed = dataclasses.replace(weights.config, brightness=0.3, mask_threshold=0.9)
    save_weights(file, dataclasses.replace(weights, config=exposed))
    begun = changed(config, init=str(file), steps=1, fsdp=fsdp)
    train(begun, tmp_path / "run")
    said = capsys.readouterr().err
    assert "is a model with brightness 0.3, this run has 0.0" in said
    assert "is a model with mask_threshold 0.9, this run has 0.2" in said
    found = leaves(tmp_path / "run", 1)
    expected, _ = jax.tree.flatten_with_path(weights.params)
    for path, leaf in expected:
        for part in ("params", "ema"):
            name = f"['{part}']{jax.tree_util.keystr(path)}"
            assert found[name] == np.asarray(leaf).tobytes(), name
    moved = file.rename(tmp_path / "moved.safetensors")
    assert train(begun, tmp_path / "run") == 1
    assert train(changed(begun, init=str(moved)), tmp_path / "run") == 1
    with pytest.raises(ConfigError, match=r"^bundled: other weights .* than this run was begun"):
        train(changed(begun, init="bundled"), tmp_path / "run")


def test_crops_are_exposed_as_the_model_expects(config, tmp_path, monkeypatch) -> None:
    def make_loader(*_: object, brightness: float = 0.0, **__: object) -> None:
        raise DataError(f"exposed to {brightness}")

    monkeypatch.setattr(loop, "make_loader", make_loader)
    exposed = dataclasses.replace(config.model, brightness=0.5)
    with pytest.raises(DataError, match=r"exposed to 0\.5"):
        train(dataclasses.replace(config, model=exposed), tmp_path)


def test_weights_of_another_model_are_no_beginning(config: Config, tmp_path: Path) -> None:
    file, tiny = tmp_path / "tiny.safetensors", PRESETS["tiny"]
    save_weights(file, Weights(golden.params("tiny", 0), tiny, "safetensors", 0, 0, ()))
    with pytest.raises(ConfigError, match=rf"{file}: .*\(dim: 8, not 2; .*flow_hidden: 64, not 4"):
        train(changed(config, init=str(file)), tmp_path / "run")


@pytest.mark.slow
def test_a_poisoned_batch_changes_nothing_but_counters(config, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, {4})
    assert train(changed(config, steps=6, checkpoint_every=1), tmp_path) == 6
    before, after = (leaves(tmp_path, step) for step in (4, 5))
    changed_keys = {key for key in before if before[key] != after[key]}
    assert {key for key in changed_keys if "params" in key or "opt_state" in key} == set()
    assert any("step" in key for key in changed_keys)
    assert leaves(tmp_path, 6) != after
    assert [r["bad_steps_total"] for r in records(tmp_path) if "loss" in r] == [0, 0, 1]


@pytest.mark.slow
def test_a_run_that_is_lost_stops_and_names_its_last_weights(config, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(3, 100)))
    lost = changed(config, steps=50, max_bad_steps=3)
    with pytest.raises(TrainingError, match=r"3 steps in a row.*checkpoints/\d+; look at"):
        train(lost, tmp_path)
    weights = load_weights(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights.params))


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Batches of these steps hold a pixel that is not a number."""
    load = Loader.__next__

    def load_poisoned(loader: Loader) -> Any:
        step, batch = loader.get_state()["step"], load(loader)
        if "valid" in batch:
            return batch
        gt = (batch["gt"] / 255).astype(np.float32)
        gt[0, 0, 0, 0] = np.nan if step in steps else gt[0, 0, 0, 0]
        return batch | {"gt": gt}

    monkeypatch.setattr(Loader, "__next__", load_poisoned)


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_not_tried(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 0)
    monkeypatch.setattr(Validator, "__call__", lambda *_: ({"psnr": 1.0}, []))
    with pytest.raises(memory.MemoryLimitError, match=r"^a training step .*data\.batch_size"):
        train(config, tmp_path)


@pytest.mark.slow
def test_a_profile(config: Config, tmp_path: Path) -> None:
    train(changed(config, steps=5), tmp_path, range(2, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# The command line.


@pytest.fixture
def yaml_file(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return path


@pytest.mark.slow
def test_the_command_trains_and_its_weights_go_back_to_torch(yaml_file, whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ["train", "--config", str(yaml_file), "--workdir", str(workdir)]
    assert cli.main([*arguments, "train.keep=9"]) == 0
    assert leaves(workdir) == leaves(whole)
    assert cli.main(["convert", str(workdir), str(tmp_path / "out.safetensors")]) == 0
    assert len(read_state_dict(tmp_path / "out.safetensors")) > 100
    assert "moving average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["train.stepz=3"], "train.stepz=3: unknown key train.stepz; nearest: train.steps"),
        (["--profile", "5"], "--profile must be FIRST:LAST"),
        (["--coordinator", "localhost:1"], "--coordinator needs --processes and --process"),
        (["data.folder=nowhere", "data.val_folder=null"], "nowhere"),
        (["data.batch_size=3"], "data.batch_size must be a multiple of"),
        (["train.fsdp=3"], "train.fsdp must divide the number of devices"),
    ],
)
def test_bad_input_is_one_clear_line(yaml_file, tmp_path, capsys, extra, message) -> None:
    arguments = ["train", "--config", str(yaml_file), "--workdir", str(tmp_path / "run"), *extra]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")


def start(yaml_file: Path, workdir: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zmar_jax", "train", "--config", str(yaml_file)]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *settings],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(yaml_file: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    long = ("train.steps=100000", "train.checkpoint_every=100000", "train.validate_every=100000")
    process = start(yaml_file, workdir, *long)
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists() or len(records(workdir)) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "the same command goes on" in error
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert max(saved) >= records(workdir)[-1]["step"] > 1


def two_processes(
    yaml_file: Path, workdir: Path, *settings: str, second: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    """The command on two hosts; `second` are settings of the second one alone."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    joined = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    own = ((), second)
    return [start(yaml_file, workdir, *settings, *own[i], *joined, str(i)) for i in range(2)]


@pytest.mark.slow
def test_two_processes_train_as_one(yaml_file: Path, whole: Path, tmp_path: Path) -> None:
    """The command on two hosts; only the first has valid pictures in its last validation batch."""
    both = two_processes(yaml_file, tmp_path / "run")
    errors = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert "2 process(es)" in errors[0]
    losses = [[r["loss"] for r in records(w) if "loss" in r] for w in (tmp_path / "run", whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "code", "messages"),
    [
        ("train.learning_rate=0.1", 2, ["  train.learning_rate  process 0 ("] * 2),
        ("data.masks.source=MASKS/b", 2, ["  masks  process 0 ("] * 2),
        ("data.folder=/nowhere", 1, ["process 1: /nowhere", "error: /nowhere"]),
        ("train.stepz=1", 1, ["process 1: train.stepz=1: unknown key", "error: train.stepz=1"]),
    ],
)
def test_what_one_host_has_alone_ends_both(yaml_file, tmp_path, second, code, messages) -> None:
    for name, lost in (("a", 4), ("b", 5)):
        mask = Image.new("L", (16, 16))
        mask.paste(255, (0, 0, lost, lost))
        (tmp_path / name).mkdir()
        mask.save(tmp_path / name / "mask.png")
    masks = f"data.masks.source={tmp_path / 'a'}"
    own = second.replace("MASKS", str(tmp_path))
    both = two_processes(yaml_file, tmp_path / "run", masks, second=(own,))
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [code, code], errors
    for error, message in zip(errors, messages, strict=True):
        assert message in error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.slow
def test_two_processes_begin_from_weights(yaml_file: Path, config, whole, tmp_path) -> None:
    recipe = {"init": str(whole), "steps": 3}
    train(changed(config, **recipe), tmp_path / "alone")
    settings = [f"train.{key}={value}" for key, value in recipe.items()]
    both = two_processes(yaml_file, tmp_path / "both", *settings)
    errors = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    losses = [
        [r["loss"] for r in records(tmp_path / run) if "loss" in r] for run in ("alone", "both")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_for_bit_the_same(yaml_file, tmp_path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py"), "--kills", "3"]
    files = ["--config", str(yaml_file), "--workdir", str(tmp_path / "kills")]
    settings = ["train.steps=120", "train.checkpoint_every=10", "train.validate_every=60"]
    done = subprocess.run(
        [*script, *files, *settings], capture_output=True, text=True, timeout=900,
        env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit equal" in done.stdout
    assert done.stdout.count("last record of step") >= 1
