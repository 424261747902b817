"""scripts/classical_baseline.py: what its filters do, and the command on tiny pairs."""

import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.imaging.metrics import score

SCRIPTS = Path(__file__).parents[1] / "scripts"


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :56] / 56
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y) for _ in range(3)]
    return np.uint8(128 + 100 * np.stack(waves, -1))


@pytest.mark.parametrize("method", ["none", "median", "nearest", "telea", "biharmonic"])
def test_fills_guess_what_is_lost_and_leave_the_rest(method):
    from classical_chain import fill

    truth = scene(0)
    low = truth.copy()
    low[10:16, 20:28] = 0
    known = (low != 0).any(-1)
    filled = fill(low, method)
    assert np.allclose(filled[known], truth[known] / 255, atol=1e-6)
    error = np.abs(filled[~known] - truth[~known] / 255).mean()
    assert error > 0.3 if method == "none" else error < 0.12


@pytest.mark.parametrize("curve", ["mean", "gamma mean", "gain gamma", "log mean"])
def test_curves_lead_to_the_mean_grey(curve):
    from classical_chain import Chain, brighten

    for level in (0.3, 0.5):
        found = brighten(scene(1) / 255 / 6, Chain(brighten=curve, level=level))
        assert found.mean() == pytest.approx(level, abs=0.02)
        assert found.max() <= 1 + 1e-6
    equalised = brighten(np.float32(scene(1) / 255), Chain(brighten=curve, level=0.5, clahe=0.02))
    assert 0 <= equalised.min() <= equalised.max() <= 1


def test_balancing_brings_the_channels_together():
    from classical_chain import balanced

    x = scene(2) / 255 * [1, 0.5, 0.4]
    spreads = [np.ptp(balanced(x, share).mean((0, 1))) for share in (0.0, 0.5, 1.0)]
    assert spreads[0] > spreads[1] > spreads[2]
    assert np.array_equal(balanced(x, 0), x)


@pytest.mark.parametrize(
    ("method", "strength"), [("tv", 0.05), ("bilateral", 0.2), ("nlm", 0.05), ("nlm colour", 0.05)]
)
def test_denoising_takes_noise_away(method, strength):
    from classical_chain import Chain, denoise

    truth = scene(3) / 255
    noisy = np.clip(truth + 0.05 * np.random.default_rng(0).standard_normal(truth.shape), 0, 1)
    found = denoise(noisy, Chain(denoise=method, strength=strength))
    assert np.square(found - truth).mean() < 0.8 * np.square(noisy - truth).mean()


def run(monkeypatch, *options: str) -> int:
    import classical_baseline
    import tyro

    monkeypatch.setattr(classical_baseline, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(sys, "argv", ["classical_baseline.py", *options])
    return tyro.cli(classical_baseline.main)


@pytest.mark.parametrize("masks", ["none", "procedural"])
def test_the_command_tunes_and_scores(masks, tmp_path, monkeypatch, capsys):
    import classical_baseline

    few = {"brighten": ("gain", "gamma mean"), "level": (0.42, 0.5), "fill": ("none", "median")}
    monkeypatch.setattr(classical_baseline, "CHOICES", few)
    for i in range(2):
        write_photo(tmp_path / "pairs" / "low" / f"{i}.png", Photo(scene(i) // 8))
        write_photo(tmp_path / "pairs" / "gt" / f"{i}.png", Photo(scene(i)))
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv")}
    written = [option for kind, path in files.items() for option in (f"--{kind}", str(path))]
    pairs = ["--tune", str(tmp_path / "pairs"), "--data", str(tmp_path / "pairs")]
    assert run(monkeypatch, *pairs, "--masks", masks, *written) == 0
    found = json.loads(files["json"].read_text())["scores"]
    assert found["classical chain"][0] >= found["one gamma curve"][0] > found["input"][0]
    assert ("ground truth, lost pixels filled" in found) == (masks == "procedural")
    assert f"| classical chain | {found['classical chain'][0]:.2f} |" in capsys.readouterr().out
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [row["id"] for row in rows] == ["0", "1"]
    if masks == "none":
        assert float(rows[0]["input: psnr"]) == score(scene(0) // 8, scene(0)).psnr
    mean = np.mean([float(row["classical chain: ssim"]) for row in rows])
    assert found["classical chain"][1] == pytest.approx(mean)


def test_what_is_not_there_is_one_clear_line(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--tune", str(tmp_path / "no"), "--data", str(tmp_path)) == 1
    assert "no such folder" in capsys.readouterr().err
