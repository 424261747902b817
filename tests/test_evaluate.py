"""Evaluating: numbers that equal scikit-image's, one by one or batched, today or after a kill."""

import csv
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from zmar_jax import ZmarSNFlow, cli, ops
from zmar_jax.config import PRESETS
from zmar_jax.evaluate import network as evaluate_network
from zmar_jax.evaluate.network import Network, Sampling, batches
from zmar_jax.evaluate.records import Records, levels_of
from zmar_jax.evaluate.statistics import bootstrap
from zmar_jax.imaging.images import Photo, read_photo, write_photo
from zmar_jax.imaging.views import choose_views
from zmar_jax.models import losses
from zmar_jax.restore.restorer import Restorer
from zmar_jax.runtime import compilation
from zmar_jax.weights import Weights, save_weights

TINY = PRESETS["tiny"]
WEIGHTS = Weights(golden.params("tiny", 0), TINY, "safetensors", 0, 0, ())
SIZES = ((32, 32), (32, 32), (30, 25), (25, 32), (32, 32))
"""Of the test pictures, which share one padded size, in every turn: programs are compiled once."""


def scene(i: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(i)
    height, width = size
    y, x = np.mgrid[:height, :width] / max(size)
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y) for _ in range(3)]
    return np.uint8(128 + 100 * np.stack(waves, -1))


def dark(gt: np.ndarray) -> np.ndarray:
    low = gt // 8
    low[5:15, 7:19] = 0
    return low


GTS = [scene(i, size) for i, size in enumerate(SIZES)]
LOWS = [dark(gt) for gt in GTS]


@functools.cache
def compiled(checksum: str) -> Network:
    assert checksum == WEIGHTS.checksum
    return Network(WEIGHTS, 1)


@functools.cache
def restorer() -> Restorer:
    return Restorer(TINY, WEIGHTS.params)


@pytest.fixture
def network() -> Network:
    return compiled(WEIGHTS.checksum)


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    """Commands take the programs that are compiled already."""
    monkeypatch.setattr(
        evaluate_network, "Network", lambda weights, *_, **__: compiled(weights.checksum)
    )


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, WEIGHTS)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pairs as PNG files."""
    for i, (low, gt) in enumerate(zip(LOWS, GTS, strict=True)):
        write_photo(tmp_path / "pairs" / "low" / f"low_{i}.png", Photo(low))
        write_photo(tmp_path / "pairs" / "high" / f"{i}.png", Photo(gt))
    return tmp_path / "pairs"


def evaluate(folder: Path, weights: Path, out: Path, *options: str) -> int:
    arguments = ["--data", str(folder), "-c", str(weights), "-o", str(out), *options]
    return cli.main(["evaluate", *arguments])


def test_a_batch_over_four_devices_restores_as_one_by_one(network):
    assert jax.device_count() == 4
    lows = [LOWS[i] for i in (0, 1, 2)]
    sampling = Sampling(heat=0.5, samples=2, seed=3)
    seen = network.see(lows)
    together = network.restore(seen, sampling, network.encode(seen))
    alone = restorer()
    for low, (mean, std) in zip(lows, together, strict=True):
        expected_mean, expected_std = alone.sample(low, 0.5, 3, 2)
        assert mean.shape == low.shape
        assert np.abs(255 * mean - expected_mean).max() < 0.5 + 1e-2
        np.testing.assert_allclose(255 * std, expected_std, atol=1e-2)
    # before rounding, too
    programs = alone.programs(32, 32)
    features = programs.encode(alone.variables, lows[1][None])
    mode = programs.decode(alone.variables, np.zeros((1, 4, 4, 192), np.float32), features)
    seen = network.see(lows)
    _, (mean, _), _ = network.restore(seen, Sampling(), network.encode(seen))
    np.testing.assert_allclose(mean, mode[0], atol=2e-5)


def test_likelihoods_are_the_models_whatever_the_batch(network):
    indices, seeds = (0, 1, 4), [7, 8, 9]
    lows, gts = [LOWS[i] for i in indices], [GTS[i] for i in indices]
    found = network.bits_per_dim(gts, seeds, network.encode(network.see(lows)))
    nll = compilation.jit(lambda *args: ZmarSNFlow(TINY).apply(*args, method="nll"))
    for low, gt, seed, bits in zip(lows, gts, seeds, found, strict=True):
        noise = jax.random.uniform(jax.random.key(seed), gt.shape) - 0.5
        args = (ops.to_unit(gt)[None], *ops.network_input(low[None]), noise[None])
        expected = losses.bits_per_dim(nll({"params": WEIGHTS.params}, *args), TINY.quantization)
        assert bits == pytest.approx(expected.item(), rel=1e-5)


def test_eight_views_give_the_mean_of_eight_restorations(network):
    low = LOWS[2]
    alone, members = restorer(), []
    for mirrored in (low, low[:, ::-1]):
        for turns in range(4):
            restored = alone(np.rot90(mirrored, turns)).astype(float)
            back = np.rot90(restored, -turns)
            members.append(back if mirrored is low else back[:, ::-1])
    sampling = Sampling(views=choose_views(8, 0.0, 0.0))
    seen = network.see([low])
    ((mean, std),) = network.restore(seen, sampling, network.encode(seen))
    np.testing.assert_allclose(255 * mean, np.mean(members, 0), atol=0.51)
    np.testing.assert_allclose(255 * std, np.std(members, 0), atol=0.6)
    assert std.max() > 0


def test_batches_hold_one_padded_size():
    sizes = ((32, 48), (25, 41), (48, 32), (32, 48), (48, 32), (33, 48))
    asked = []
    padded = PRESETS["zmar_snflow"].padded
    found = batches(sizes, lambda *size: asked.append(size) or 2, padded)
    assert found == [[0, 1], [3], [2, 4], [5]]
    assert asked == [(32, 48), (48, 32), (40, 48)]


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(100):
        found = bootstrap((20 + 3 * rng.standard_normal(40)).tolist())
        assert found["low"] < found["mean"] < found["high"]  # pyright: ignore
        inside += found["low"] <= 20 <= found["high"]  # pyright: ignore
    assert 87 <= inside <= 99
    assert bootstrap([1.0, 2.0, 4.0]) == bootstrap([1.0, 2.0, 4.0])
    assert bootstrap([3.0]) == {"mean": 3.0, "low": None, "high": None}
    assert bootstrap([3.0, math.nan])["mean"] is None


def test_numbers_equal_scikit_images_on_the_written_pngs(folder, weights_file, tmp_path):
    out = tmp_path / "out"
    assert evaluate(folder, weights_file, out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 5
    assert [image["id"] for image in metrics["per_image"]] == [f"low_{i}" for i in range(5)]
    for image, gt, low in zip(metrics["per_image"], GTS, LOWS, strict=True):
        png = read_photo(out / "restored" / f"{image['id']}.png").rgb
        assert image["psnr"] == pytest.approx(peak_signal_noise_ratio(gt, png), rel=1e-9)
        ssim = structural_similarity(gt, png, channel_axis=2)
        assert image["ssim"] == pytest.approx(ssim, rel=1e-9)
        assert image["psnr_input"] == pytest.approx(peak_signal_noise_ratio(gt, low), rel=1e-9)
        assert image["lost_share"] == np.mean(np.all(low == 0, -1))
        assert math.isfinite(image["bits_per_dim"])
    for name in ("psnr", "ssim", "bits_per_dim"):
        values = [image[name] for image in metrics["per_image"]]
        mean = metrics["mean"][name]
        assert mean["mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert min(values) <= mean["low"] <= mean["mean"] <= mean["high"] <= max(values)
    with (out / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in rows] == [i["psnr"] for i in metrics["per_image"]]
    assert all(float(row["seconds"]) > 0 for row in rows)


def snapshot(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def test_run_again_it_computes_nothing_and_writes_the_same(folder, weights_file, tmp_path):
    out = tmp_path / "out"
    options = ("--heat", "0.5", "--samples", "2")
    assert evaluate(folder, weights_file, out, *options) == 0
    first = snapshot(out)
    assert evaluate(folder, weights_file, out, *options) == 0
    # seconds, too, which a new computation would change
    assert snapshot(out) == first
    assert len([name for name in first if name.startswith("uncertainty/")]) == 5
    deviation = levels_of(read_photo(out / "uncertainty" / "low_0.png").rgb)
    _, std = restorer().sample(LOWS[0], 0.5, 0, 2)
    np.testing.assert_allclose(deviation, std.mean(-1), atol=0.02)
    # another folder: all but the times
    assert evaluate(folder, weights_file, tmp_path / "other", *options) == 0
    assert (tmp_path / "other" / "metrics.json").read_bytes() == first["metrics.json"]


def test_names_need_not_be_utf_8(weights_file, tmp_path, capsys):
    name = os.fsdecode(b"\xff\xfe")
    write_photo(tmp_path / name / f"{name}.png", Photo(GTS[0]))
    out = tmp_path / "out"
    for _ in range(2):
        assert evaluate(tmp_path / name, weights_file, out) == 0
    assert r"\udcff" in capsys.readouterr().out
    assert json.loads((out / "evaluation.json").read_text())["data"] == name
    assert b"\n\xff\xfe,32,32," in (out / "per_image.csv").read_bytes()
    assert b"Evaluation on \xff\xfe" in (out / "report.html").read_bytes()
    assert (out / "restored" / f"{name}.png").exists()


def test_what_was_lost_or_changed_is_computed_again(folder, weights_file, tmp_path):
    out = tmp_path / "out"
    assert evaluate(folder, weights_file, out) == 0
    first, metrics = snapshot(out), (out / "metrics.json").read_bytes()
    (out / "restored" / "low_1.png").unlink()
    write_photo(out / "restored" / "low_2.png", Photo(GTS[2]))
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    assert evaluate(folder, weights_file, out) == 0
    assert (out / "metrics.json").read_bytes() == metrics
    again = snapshot(out)
    assert all(again[n] == first[n] for n in first if n.startswith("restored/"))
    # another input: its numbers change, those of the others do not
    write_photo(folder / "low" / "low_0.png", Photo(LOWS[0] // 2))
    assert evaluate(folder, weights_file, out) == 0
    images = json.loads((out / "metrics.json").read_text())["per_image"]
    before = json.loads(metrics)["per_image"]
    assert [a == b for a, b in zip(images, before, strict=True)] == [False, True, True, True, True]


def test_other_settings_are_refused_until_overwritten(folder, weights_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(folder, weights_file, out) == 0
    (out / "notes.txt").write_text("mine")
    before = snapshot(out)
    other = tmp_path / "other.safetensors"
    save_weights(other, Weights(golden.params("tiny", 1), TINY, "safetensors", 0, 0, ()))
    sampled = ["--heat", "0.9", "--overwrite"]
    changes = {"weights": [], "protocol": ["--protocol", "rf"], "seed": ["--seed", "1"]}
    for what, options in changes.items():
        capsys.readouterr()
        weights = other if what == "weights" else weights_file
        assert evaluate(folder, weights, out, *options) == 1
        error = capsys.readouterr().err
        assert "other settings" in error
        assert what in error
        assert "--overwrite" in error
        assert snapshot(out) == before
    assert evaluate(folder, weights_file, out, *sampled) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert snapshot(out)["restored/low_0.png"] != before["restored/low_0.png"]


AS_COMPILED_HERE = """
import sys
from zmar_jax import cli
from zmar_jax.runtime import compilation
compilation.LLVM_LEVEL = 0
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(weights_file, tmp_path):
    folder = tmp_path / "pairs"
    for i in range(60):
        gt = scene(i, (32, 32))
        write_photo(folder / "input" / f"{i:02}.png", Photo(dark(gt)))
        write_photo(folder / "target" / f"{i:02}.png", Photo(gt))
    out = tmp_path / "out"
    command = [sys.executable, "-c", AS_COMPILED_HERE, "evaluate", "--data", str(folder)]
    options = ["-c", str(weights_file), "-o", str(out), "--batch", "1"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    while not list(out.glob("restored/*.png")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = (out / "records.jsonl").read_text().count("\n")
    assert done < 60
    assert not (out / "metrics.json").exists()
    for path in out.glob("restored/*.png"):
        assert read_photo(path).rgb.shape == (32, 32, 3)
    assert evaluate(folder, weights_file, out) == 0
    assert evaluate(folder, weights_file, tmp_path / "whole") == 0
    whole = (tmp_path / "whole" / "metrics.json").read_bytes()
    assert (out / "metrics.json").read_bytes() == whole
    # the records of before the kill were kept: their times are from then
    assert (out / "records.jsonl").read_text().count("\n") == 60


def test_dark_pictures_are_scored_without_ground_truth(weights_file, tmp_path, network):
    from zmar_jax.evaluate.niqe import niqe

    gts = [scene(i, (96, 192)) for i in range(2)]
    rng = np.random.default_rng(0)
    lows = [np.uint8(gt // 8 + rng.integers(0, 9, gt.shape)) for gt in gts]
    for name, low in zip(("a", "deep/b"), lows, strict=True):
        write_photo(tmp_path / "night" / f"{name}.png", Photo(low))
    out, options = tmp_path / "out", ("--no-reference",)
    assert evaluate(tmp_path / "night", weights_file, out, *options) == 0
    first = snapshot(out)
    metrics = json.loads(first["metrics.json"])
    assert (metrics["kind"], [image["id"] for image in metrics["per_image"]]) == (
        "dark",
        ["a", "deep/b"],
    )
    assert not {"psnr", "bits_per_dim", "protocol"} & {*metrics, *metrics["per_image"][0]}
    for image, low in zip(metrics["per_image"], lows, strict=True):
        png = read_photo(out / "restored" / f"{image['id']}.png").rgb
        assert (image["niqe"], image["niqe_input"]) == (niqe(png), niqe(low))
        assert image["brightness"] == pytest.approx(png.mean())
        assert image["brightness_input"] == pytest.approx(low.mean())
    table = first["table.md"].decode()
    assert table.startswith("| NIQE / brightness | pictures as given, no ground truth |")
    assert f"| its inputs | {metrics['mean']['niqe_input']['mean']:.2f} (" in table
    # started again it computes nothing
    assert evaluate(tmp_path / "night", weights_file, out, *options) == 0
    assert snapshot(out) == first


def test_a_flat_picture_has_no_niqe_and_that_is_said(
    weights_file, tmp_path, capsys, monkeypatch, network
):
    write_photo(tmp_path / "night" / "a.png", Photo(np.zeros((96, 192, 3), np.uint8)))
    assert evaluate(tmp_path / "night", weights_file, tmp_path / "out", "--no-reference") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["per_image"][0]["niqe_input"] is None
    assert metrics["per_image"][0]["brightness_input"] == 0
    assert metrics["mean"]["niqe_input"]["mean"] is None
    assert "a: no NIQE, as hardly any of it has texture" in capsys.readouterr().err


def test_protocols_and_brightness_are_those_of_metrics(folder, weights_file, tmp_path, network):
    from zmar_jax.imaging.metrics import score

    out = tmp_path / "out"
    assert evaluate(folder, weights_file, out, "--protocol", "rf", "--gt-mean") == 0
    images = json.loads((out / "metrics.json").read_text())["per_image"]
    seen = network.see([LOWS[3]])
    ((mean, _),) = network.restore(seen, Sampling(), network.encode(seen))
    # rf sees what is not rounded yet
    expected = score(mean, GTS[3], "rf", gt_mean=True)
    assert images[3]["psnr"] == pytest.approx(expected.psnr, abs=1e-4)
    assert images[3]["ssim"] == pytest.approx(expected.ssim, abs=1e-3)
    assert images[3]["psnr_input"] == score(LOWS[3], GTS[3], "rf", gt_mean=True).psnr


def test_a_restoration_that_is_not_finite_has_no_score(
    folder, weights_file, tmp_path, capsys, monkeypatch
):
    decode = Network.restore

    def broken(self, lows, sampling, features):
        restored = decode(self, lows, sampling, features)
        restored[0][0][3, 4, 1] = np.nan
        return restored

    monkeypatch.setattr(Network, "restore", broken)
    assert evaluate(folder, weights_file, tmp_path / "out") == 0
    assert "low_0: its restoration is not finite" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["mean"]["psnr"] == {"mean": None, "low": None, "high": None}
    assert metrics["per_image"][0]["ssim"] is None
    assert metrics["per_image"][1]["ssim"] is not None
    assert "not finite" in (tmp_path / "out" / "table.md").read_text()


def test_a_full_disk_is_one_clear_error(small_disk, folder, weights_file, capsys):
    (small_disk / "filling").write_bytes(bytes(4 << 20)[: (4 << 20) - 16384])
    assert evaluate(folder, weights_file, small_disk / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "2"], "needs --heat above 0"),
        (["--samples", "0"], "--samples must be 1"),
        (["--heat", "-1"], "--heat must be 0 or more"),
        (["--batch", "0"], "--batch must be 1"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--exposure", "0.1:0.2"], "--exposure is of clean photographs"),
        (["--no-reference", "--gt-mean"], "--no-reference has none"),
        (["--no-reference", "--protocol", "rf"], "--no-reference has none"),
        (["--no-reference", "--data", "sid"], "no such folder"),
        (["--sdsd-frames", "30"], "--sdsd-frames is of the SDSD benchmarks"),
        (["--masks", "no_such"], "no_such"),
        (["-o", "{folder}/out"], "lies in the folder of pictures"),
        (["-c", "no_such_weights"], "no_such_weights"),
        (["--data", "{folder}/low/low_0.png"], "no such folder, and no benchmark"),
        (["--data", "sid"], "zmar-jax prepare sid"),
    ],
)
def test_bad_input_is_one_clear_line(options, message, folder, weights_file, tmp_path, capsys):
    filled = [option.format(folder=folder) for option in options]
    assert evaluate(folder, weights_file, tmp_path / "out", *filled) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_records_survive_strange_names(tmp_path):
    id_ = "a/<b> \u2028'\"é"
    records = Records(tmp_path, {"seed": 0})
    records.add(id_, "x", GTS[0], None, {"psnr": math.inf})
    record = Records(tmp_path, {"seed": 0}).find(id_, "x")
    assert record is not None
    assert record["psnr"] is None
    assert Records(tmp_path, {"seed": 0}).find(id_, "y") is None
