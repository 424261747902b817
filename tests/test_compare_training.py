"""scripts/compare_training.py: both trainings measure the same, and the command itself."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import needs
import numpy as np
import pytest
import training

from zmar_jax.config import TrainConfig, override
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.train.optimizer import optimizer

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONFIG = """
model:
  dim: 2
  blocks: [1, 1, 1, 1]
  refinement_blocks: 1
  heads: [1, 1, 1, 1]
  flow_additional_steps: 1
  flow_steps: 1
  flow_hidden: 4
  brightness: 0.3
data: {batch_size: 2, crop: 16}
train: {steps: 100, learning_rate: 0.001, warmup_steps: 2, weight_l1: 5.0}
"""


@pytest.fixture
def pairs(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(3):
        gt = np.repeat(np.repeat(rng.integers(1, 256, (3, 4, 3), np.uint8), 8, 0), 8, 1)
        write_photo(tmp_path / "pairs" / "low" / f"{i}.png", Photo(gt // 10))
        write_photo(tmp_path / "pairs" / "gt" / f"{i}.png", Photo(gt))
    return tmp_path / "pairs"


def curves(changes: list[str]) -> tuple[Any, Any]:
    """Of zmar_jax and of PyTorch, three steps."""
    import compare_training

    from zmar_jax import torch_port

    # the plain PyTorch model has the published three levels
    sizes = ["model.blocks=[1,1,1,1]", "model.heads=[1,1,1,1]"]
    config = override(training.config(ema=None, warmup_steps=0), [*sizes, *changes])
    rng = np.random.default_rng(1)
    taken = []
    for _ in range(3):
        gt = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
        noise = rng.random(gt.shape, np.float32) - np.float32(0.5)
        taken.append({"low": gt // 9, "gt": gt, "noise": noise})
    params = compare_training.initialised(config, taken[0])
    weights = torch_port.to_state_dict(params, config.model)
    ours = compare_training.run_jax(config, params, taken)
    return ours, compare_training.run_torch("PyTorch", config, weights, taken, 1)


@needs.torch
@pytest.mark.parametrize(
    "changes",
    [
        [
            *("train.weight_l1=5.0", "train.clip_norm=0.5", "train.weight_decay_flow=0.1"),
            "train.learning_rate=0.0001",
        ],
        pytest.param(
            ["train.weight_l1=5.0", "train.flow_warmup_steps=2", "train.learning_rate=0.0001"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["clipped adam", "flow first"],
)
def test_each_step_measures_the_same(changes):
    """At low rates: Adam's first steps follow the signs of gradients that are but rounding."""
    ours, theirs = curves(changes)
    assert set(theirs[0]) <= set(ours[0])
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        # of L1 alone: the gradient of |gt - restored| jumps where a rounding changes a sign
        kinks = {"grad_norm": 0.02} if i and "train.flow_warmup_steps=2" in changes else {}
        for name in set(other) - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], rel=kinks.get(name, 2e-4)), name
    assert len({round(step["loss"], 3) for step in theirs}) == 3


@needs.torch
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_optimizers_go_the_same_way(kind):
    """Given the same gradients; each half of the model has its own decay."""
    import torch
    import torch_training

    rng = np.random.default_rng(0)
    names = {"encoder": "RRDB", "flow": "flow"}

    def draw() -> dict[str, np.ndarray]:
        return {half: rng.standard_normal(9, np.float32) for half in names}

    recipe = TrainConfig(
        optimizer=kind, weight_decay_encoder=0.3, weight_decay_flow=0.05, learning_rate=0.1
    )
    params = start = draw()
    model = torch.nn.ModuleDict(
        {names[half]: torch.nn.ParameterDict({"w": torch.tensor(w)}) for half, w in params.items()}
    )
    theirs = torch_training.make_optimizer(model, dataclasses.asdict(recipe))
    ours = optimizer(recipe)
    state = ours.init(params)
    for _ in range(4):
        grads = draw()
        updates, state = ours.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - recipe.learning_rate * u, params, updates)
        for half, grad in grads.items():
            model[names[half]]["w"].grad = torch.tensor(grad)
        theirs.step()
    for half, w in params.items():
        assert np.abs(w - start[half]).max() > 0.1
        found = model[names[half]]["w"].detach().numpy()
        np.testing.assert_allclose(found, w, rtol=3e-6, atol=1e-6)


@needs.torch
def test_the_command_draws_and_tells(pairs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    import compare_training

    file, picture = tmp_path / "config.yaml", tmp_path / "out" / "curve.png"
    file.write_text(CONFIG)
    command = ["compare_training.py", "--data", str(pairs), "--config", str(file), "--steps", "3"]
    command += ["--threads", "1", "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    assert compare_training.main() == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(picture.with_suffix(".json").read_text())
    assert (result["data"], result["steps"], result["init"]) == ("pairs", 3, "random, seed 0")
    assert result["recipe"]["weight_l1"] == 5
    assert len(result["jax"]["loss"]) == len(result["torch"]["l1"]) == 3
    assert 0 < max(result["difference"]) < 1e-4
    assert 0 < max(result["difference_rounded"]) < 1e-3
    printed = capsys.readouterr()
    assert (
        f"| 3 | {result['torch']['loss'][2]:.4f} | {result['jax']['loss'][2]:.4f} |" in printed.out
    )
    assert "weight_l1 5.0" in printed.out
    assert "PyTorch: step 3 of 3" in printed.err


def test_batches_repeat_and_show_whole_pictures_exposure(pairs, tmp_path):
    import compare_training

    from zmar_jax.config import load_config

    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml")
    first, second = (compare_training.batches(config, str(pairs)) for _ in range(2))
    taken = [next(first) for _ in range(4)]
    for batch in taken:
        again = next(second)
        assert all(np.array_equal(batch[key], again[key]) for key in batch)
        assert batch["low"].shape == batch["gt"].shape == batch["noise"].shape == (2, 16, 16, 3)
        assert batch["low"].mean() > 0.3 * batch["gt"].mean()  # a tenth of it before
        assert -0.5 <= batch["noise"].min() < batch["noise"].max() < 0.5
    assert not np.array_equal(taken[0]["gt"], taken[1]["gt"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps and --threads must be 1 or more"),
        (["--set", "model.policy=bfloat16"], "model.policy must be float32"),
        (["--set", "train.accumulate=2"], "train.accumulate must be 1"),
        (["--data", "{pairs}", "--set", "data.crop=64"], "smaller than the crop of 64: 0, 1, 2"),
        (["--data", "builtin"], "expected a folder of pairs"),
    ],
)
def test_bad_options_are_one_clear_line(options, message, pairs, monkeypatch, capsys):
    import compare_training

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    filled = [option.format(pairs=pairs) for option in options]
    monkeypatch.setattr(sys, "argv", ["compare_training.py", *filled])
    assert compare_training.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    import compare_training

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["compare_training.py"])
    assert compare_training.main() == 1
    assert "pip install torch matplotlib" in capsys.readouterr().err
