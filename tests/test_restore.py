"""Restoring: what is written is what `inverse` gives, for any size, depth and number of samples."""

import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import time

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zmar_jax import ZmarSNFlow, cli, load_restorer, ops
from zmar_jax.config import PRESETS
from zmar_jax.imaging.images import Photo, read_photo, write_photo
from zmar_jax.restore.files import Options, restore_files, std_path
from zmar_jax.restore.programs import RestorePrograms
from zmar_jax.restore.restorer import Restorer
from zmar_jax.runtime import compilation
from zmar_jax.weights import Weights, save_weights

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer(TINY, golden.params("tiny", 0))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Weights(golden.params("tiny", 0), TINY, "safetensors", 0, 0, ()))
    return path


def dark_photo(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    """A dim scene of smooth colours with noise and lost blocks."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width] / max(height, width)
    scene = np.stack([0.2 + 0.2 * x, 0.3 * y, 0.25 - 0.1 * x * y], -1)
    scene = np.clip(scene + 0.02 * rng.standard_normal(scene.shape), 0, 1)
    scene[height // 3 : height // 2, width // 4 : width // 2] = 0
    return np.round(scene * np.iinfo(dtype).max).astype(dtype)


@functools.cache
def _inverse():
    model = ZmarSNFlow(TINY)

    def inverse(params, z, image):
        return model.apply({"params": params}, z, *ops.network_input(image), method="inverse")[0]

    return compilation.jit(inverse)


def by_inverse(image: np.ndarray, heat: float = 0.0, eps: np.ndarray | None = None) -> np.ndarray:
    """model.md sections 1 and 6, step by step: float32 in [0, 1]."""
    h, w, _ = image.shape
    padded = np.pad(image, ((0, -h % 8), (0, -w % 8), (0, 0)), mode="reflect")
    latent = (1, padded.shape[0] // 8, padded.shape[1] // 8, 192)
    z = jnp.zeros(latent) if eps is None else heat * eps
    x = _inverse()(golden.params("tiny", 0), z, padded[None])
    return np.clip(np.asarray(x)[0, :h, :w], 0, 1)


@pytest.mark.parametrize(
    "size", [(32, 48), (27, 41), pytest.param((16, 23), marks=pytest.mark.slow)]
)
def test_the_png_equals_what_inverse_gives(size, restorer, tmp_path):
    image = dark_photo(*size)
    write_photo(tmp_path / "in.png", Photo(image))
    errors = []
    restore_files(
        restorer,
        [(tmp_path / "in.png", tmp_path / "out.png")],
        Options(),
        lambda source, target, error: errors.append(error),
    )
    assert errors == [None]
    written = read_photo(tmp_path / "out.png").rgb
    expected = np.round(255 * by_inverse(image))
    # equal but for values that float32 rounding carries over a half
    assert np.abs(written - expected).max() <= 1
    assert (written == expected).mean() > 0.999


def test_a_picture_restored_without_stripes_is_the_same(restorer, weights_file, tmp_path):
    image = dark_photo(32, 48)
    write_photo(tmp_path / "in.png", Photo(image))
    arguments = [str(tmp_path / "in.png"), "-c", str(weights_file), "-o", str(tmp_path / "out")]
    assert cli.main(["restore", *arguments, "--stripes", "none"]) == 0
    found = read_photo(tmp_path / "out" / "in.png").rgb
    assert np.abs(found.astype(int) - restorer(image)).max() <= 1


def test_16_bits_are_restored_at_full_depth(restorer):
    image = dark_photo(32, 48, np.uint16)
    restored = restorer(image)
    assert restored.dtype == np.uint16
    assert np.abs(restored - 65535 * by_inverse(image)).max() < 65535 * 1e-4


def test_samples_give_mean_and_deviation_of_one_encoding(restorer):
    image, calls = dark_photo(32, 48), []
    counting = Restorer(TINY, golden.params("tiny", 0))
    programs = restorer.programs(32, 48)
    counted = dataclasses.replace(
        programs, encode=lambda *a: calls.append(a) or programs.encode(*a)
    )
    counting.programs = lambda height, width: counted
    mean, std = counting.sample(image, heat=0.7, seed=3, samples=4)
    keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(4)]
    each = [255 * by_inverse(image, 0.7, jax.random.normal(k, (1, 4, 6, 192))) for k in keys]
    assert len(calls) == 1
    assert np.abs(mean - np.mean(each, 0)).max() < 0.51
    np.testing.assert_allclose(std, np.std(each, 0), atol=0.02)


def test_seed_and_heat_decide_the_picture(restorer):
    image = dark_photo(32, 48)
    assert np.array_equal(restorer(image, 0.5, 1), restorer(image, 0.5, 1))
    assert not np.array_equal(restorer(image, 0.5, 1), restorer(image, 0.5, 2))
    assert np.array_equal(restorer(image, 0.0, 1), restorer(image, 0.0, 2))


def test_each_padded_size_is_compiled_once(restorer):
    encode = restorer.programs(16, 24).encode
    before = encode._cache_size()
    for size in ((16, 24), (16, 17), (16, 24)):
        restorer(dark_photo(*size))
    assert encode._cache_size() == before + 1


@pytest.mark.parametrize(
    ("image", "kwargs", "message"),
    [
        (np.zeros((15, 40, 3), np.uint8), {}, "at least 16x16 pixels, got 40x15"),
        (np.zeros((32, 32), np.uint8), {}, r"expected a uint8 or uint16 image \[H, W, 3\]"),
        (np.zeros((32, 32, 3), np.float32), {}, "got float32"),
        (np.zeros((32, 32, 3), np.uint8), {"heat": -1.0}, "heat must be 0 or more"),
        (np.zeros((32, 32, 3), np.uint8), {"heat": float("nan")}, "heat must be 0 or more"),
        (np.zeros((32, 32, 3), np.uint8), {"heat": 1.0, "samples": 0}, "samples must be 1"),
    ],
)
def test_bad_input_is_refused(restorer, image, kwargs, message):
    with pytest.raises(ValueError, match=message):
        restorer.sample(image, **({"heat": 0.0} | kwargs))


def test_weights_of_every_format_restore_the_same(restorer, weights_file, tmp_path):
    params = golden.params("tiny", 0)
    save_weights(tmp_path / "orbax", Weights(params, TINY, "orbax", 0, 0, ()))
    image = dark_photo(32, 48)
    for path in (weights_file, tmp_path / "orbax"):
        assert np.array_equal(load_restorer(path)(image), restorer(image)), path


def test_a_bad_file_is_reported_and_the_others_go_on(restorer, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    write_photo(tmp_path / "good.png", Photo(dark_photo(32, 48)))
    seen = {}
    failed = restore_files(
        restorer,
        [(tmp_path / f"{n}.png", tmp_path / "out" / f"{n}.png") for n in ("broken", "good")],
        Options(heat=0.5, samples=2, std=True),
        lambda source, target, error: seen.update({source.stem: error}),
    )
    assert failed == [tmp_path / "broken.png"]
    assert "broken.png" in str(seen["broken"])
    assert seen["good"] is None
    assert read_photo(std_path(tmp_path / "out" / "good.png")).rgb.shape == (32, 48, 3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.png", "good.std.png"]


@pytest.mark.parametrize(("heat", "advice"), [(0.0, "; check"), (0.5, " at heat 0.5; lower it")])
def test_pixels_that_are_not_finite_are_no_picture(heat, advice):
    broken = Restorer(TINY, {})
    pixels = np.full((1, 32, 48, 3), np.nan)
    broken.programs = lambda height, width: RestorePrograms(lambda *_: None, lambda *_: pixels)
    with pytest.raises(ValueError, match=f"pixels are not finite{advice}"):
        broken(dark_photo(32, 48), heat)


def test_what_does_not_fit_is_refused_by_name(weights_file, tmp_path, capsys):
    write_photo(tmp_path / "huge.png", Photo(dark_photo(64, 96)))
    options = ["-c", str(weights_file), "-o", str(tmp_path / "out"), "--memory", "100MiB"]
    assert cli.main(["restore", str(tmp_path / "huge.png"), *options]) == 1
    expected = r"huge\.png: 96x64 pixels \(width x height\) need 0\.\d GiB of memory, and 0\.1 GiB"
    assert re.search(expected, " ".join(capsys.readouterr().err.split()))


def test_grey_and_transparency_survive(restorer, tmp_path):
    image = dark_photo(32, 48)
    alpha = np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)
    write_photo(tmp_path / "alpha.png", Photo(image, alpha=alpha))
    write_photo(tmp_path / "grey.png", Photo(image, grey=True))
    for name in ("alpha.png", "grey.png"):
        paths = [(tmp_path / name, tmp_path / "out" / name)]
        assert not restore_files(restorer, paths, Options(), lambda *_: None)
    assert np.array_equal(read_photo(tmp_path / "out" / "alpha.png").alpha, alpha)
    assert read_photo(tmp_path / "out" / "grey.png").grey


@pytest.mark.slow
def test_a_killed_run_leaves_only_whole_pictures(weights_file, tmp_path):
    source = tmp_path / "in"
    for i in range(400):
        write_photo(source / f"{i:03}.png", Photo(dark_photo(32, 48)))
    command = [sys.executable, "-m", "zmar_jax", "restore", str(source)]
    options = ["--checkpoint", str(weights_file), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = list(tmp_path.glob("out/*.png"))
    assert 0 < len(written) < 400
    for path in written:
        assert read_photo(path).rgb.shape == (32, 48, 3)
