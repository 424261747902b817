"""Likelihoods of pairs: the command, and that they tell the true picture from others."""

import json
import os
from pathlib import Path

import golden
import numpy as np
import pytest
import skimage.data
from scipy.ndimage import gaussian_filter
from skimage.io import imread

from zmar_jax import cli
from zmar_jax.config import PRESETS, DarkenConfig, MaskConfig
from zmar_jax.data.degrade import darken
from zmar_jax.data.hashing import id_seed
from zmar_jax.data.masks import apply_mask, draw_mask
from zmar_jax.evaluate import likelihood
from zmar_jax.evaluate import network as evaluate_network
from zmar_jax.evaluate.network import Network
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.weights import BUNDLED, Weights, load_weights, save_weights

"""Or any other weights that restore darkened photographs, for this test: $ZMAR_JAX_TEST_WEIGHTS."""


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    params = golden.params("tiny", 0)
    save_weights(path, Weights(params, PRESETS["tiny"], "safetensors", 0, 0, ()))
    return path


def put(path: Path, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    write_photo(path, Photo(pixels))
    return pixels


def test_the_command_scores_folders_and_files(weights_file, tmp_path, capsys, monkeypatch):
    network = Network(load_weights(weights_file))
    monkeypatch.setattr(evaluate_network, "Network", lambda weights, **_: network)
    lows, gts = [], []
    for i, name in enumerate("ab"):
        lows.append(put(tmp_path / "low" / f"low_{name}.png", i))
        gts.append(put(tmp_path / "restored" / f"{name}.png", 10 + i))
    options = ["-c", str(weights_file), "--seed", "3"]

    def score(low: str, restored: str, *more: str) -> str:
        places = ["--low", str(tmp_path / low), "--restored", str(tmp_path / restored)]
        assert cli.main(["score", *places, *options, *more]) == 0
        return capsys.readouterr().out

    found = json.loads(score("low", "restored", "--json"))
    seeds = [id_seed(3, "low_a"), id_seed(3, "low_b")]
    expected = network.bits_per_dim(gts, seeds, network.encode(network.see(lows)))
    assert found["bits_per_dim"] == {
        name: pytest.approx(bits, rel=1e-6)
        for name, bits in zip(("low_a", "low_b"), expected, strict=True)
    }
    assert found["mean"] == pytest.approx(np.mean(expected))
    table = score("low/low_b.png", "restored/b.png")
    assert f"{expected[1]:.4f}" in table
    assert "low_b" in table


def test_a_likelihood_that_is_not_finite_is_null(weights_file, tmp_path, capsys, monkeypatch):
    scores = {"a": 1.0, "b": float("inf"), "c": float("-inf")}
    monkeypatch.setattr(likelihood, "find_pairs", lambda low, restored, tell: [])
    monkeypatch.setattr(likelihood, "score_pairs", lambda *_: scores)
    monkeypatch.setattr(evaluate_network, "Network", lambda weights, **_: None)
    places = ["--low", "low", "--restored", "restored", "-c", str(weights_file)]
    assert cli.main(["score", *places, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["bits_per_dim"] == {"a": 1.0, "b": None, "c": None}
    assert found["mean"] is None
    assert "warning: b: its likelihood is not finite" in told.err


@pytest.mark.parametrize(
    ("low", "restored", "message"),
    [
        ("low", "restored/1.png", "two files or two folders"),
        ("low", "restored", "low/2.png: no partner"),
        ("low", "missing", "missing: no such file or folder"),
        ("low/2.png", "other.png", "32x32, but"),
        ("low/2.png", "missing.png", "missing.png: cannot be read"),
    ],
)
def test_bad_input_is_one_clear_error(low, restored, message, weights_file, tmp_path, capsys):
    for i, name in enumerate(("low/1.png", "low/2.png", "restored/1.png")):
        put(tmp_path / name, i)
    write_photo(tmp_path / "other.png", Photo(np.zeros((16, 16, 3), np.uint8)))
    places = ["--low", str(tmp_path / low), "--restored", str(tmp_path / restored)]
    assert cli.main(["score", *places, "-c", str(weights_file)]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error


@pytest.mark.slow
def test_the_true_pair_scores_better_than_a_shifted_or_blurred_one():
    """Of a pair, one picture shifted, or the low one blurred: less of the truth is in it.

    Not the ground truth blurred: a density is highest at its mode, which is smooth, so that
    prefers it (docs/evaluation.md).
    """
    path = Path(os.environ.get("ZMAR_JAX_TEST_WEIGHTS", BUNDLED))
    network = Network(load_weights(path), 1)
    found = {name: [] for name in ("true", "gt shifted", "low shifted", "low blurred")}
    for i, name in enumerate(("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")):
        gt = imread(os.path.join(skimage.data.data_dir, name))[-240:, 100:340]
        dim = darken(gt, i, DarkenConfig(exposure=(0.05, 0.1)))
        lost = draw_mask(i, gt.shape[:2], MaskConfig())
        low = apply_mask(dim, lost)
        soft = apply_mask(np.round(gaussian_filter(dim.astype(float), (4, 4, 0))), lost)
        pairs = {
            "true": (low, gt),
            "gt shifted": (low, np.roll(gt, (8, 8), (0, 1))),
            "low shifted": (np.roll(low, (8, 8), (0, 1)), gt),
            "low blurred": (soft.astype(np.uint8), gt),
        }
        for kind, (dark, clean) in pairs.items():
            found[kind] += network.bits_per_dim([clean], [0], network.encode(network.see([dark])))
    means = {kind: np.mean(bits) for kind, bits in found.items()}
    assert all(means["true"] < mean for kind, mean in means.items() if kind != "true"), found
