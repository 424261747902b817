"""Compact files, and the weights that come with the package."""

import dataclasses
from pathlib import Path

import golden
import jax
import numpy as np
import pytest

from zmar_jax import torch_port
from zmar_jax.config import PRESETS
from zmar_jax.data.sample import sample
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import (
    BUNDLED,
    Weights,
    folder,
    load_weights,
    parameter_counts,
    run,
    save_weights,
)

TINY = Weights(golden.params("tiny", 0), PRESETS["tiny"], "safetensors", 0, 0, ())


def test_a_compact_file_holds_what_is_used_in_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "compact.safetensors"
    save_weights(path, TINY, compact=True)
    used = {e.key for e in torch_port.key_table(TINY.config) if e.parts}
    state_dict = torch_port.read_state_dict(path)
    assert state_dict.keys() == used
    assert {a.dtype for a in state_dict.values()} == {np.dtype(np.float16)}
    read = load_weights(path)
    assert read.config == TINY.config
    for found, expected in zip(
        jax.tree.leaves(read.params), jax.tree.leaves(TINY.params), strict=True
    ):
        np.testing.assert_array_equal(found, np.asarray(expected).astype(np.float16))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=f"{tmp_path}/none.pth: expected a weights file"):
        load_weights("~/none.pth")
    with pytest.raises(WeightsError, match=r"^~none.pth: expected a weights file"):
        load_weights("~none.pth")


def test_the_bundled_weights_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled").mkdir()  # does not hide them
    assert load_weights(Path("bundled")).checksum == load_weights().checksum


def test_what_half_precision_cannot_hold_is_not_written(tmp_path: Path) -> None:
    params = jax.tree.map(lambda leaf: np.full_like(leaf, 7e4), TINY.params)
    with pytest.raises(WeightsError, match=r"\S+ has values beyond float16, of up to 7e\+04"):
        save_weights(
            tmp_path / "w.safetensors", dataclasses.replace(TINY, params=params), compact=True
        )
    assert not list(tmp_path.iterdir())


def test_an_orbax_directory_is_not_compact(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"only .safetensors and .pth files can be compact"):
        save_weights(tmp_path / "weights", TINY, compact=True)
    assert not list(tmp_path.iterdir())


def test_the_bundled_weights_are_small() -> None:
    weights = load_weights()
    assert BUNDLED.stat().st_size <= 10_000_000
    assert parameter_counts(weights.config)[-1][1] <= 5_000_000
    assert weights.dtypes == ("float16", "float32")  # of all parameters, and of the brightness
    assert weights.config.mask_attention
    assert weights.config.brightness == 0.34


def test_the_sample_is_dark_and_has_lost_pixels() -> None:
    low, gt = sample()
    assert low.shape == gt.shape == (400, 600, 3)
    assert 0.1 < (low == 0).all(-1).mean() < 0.5
    assert low.mean() < 0.5 * gt.mean()
    np.testing.assert_array_equal(low, sample()[0])


def test_the_checkpoints_of_a_run_are_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("5", "10"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / step / folder.DIGESTS).write_text("{}")
    (tmp_path / "none").mkdir()
    assert not folder.is_run(tmp_path / "none")
    monkeypatch.setattr(run, "_read", lambda path: ({}, PRESETS["tiny"], "weights"))
    for path in ("run", "run/checkpoints", "run/checkpoints/10"):
        assert folder.is_run(tmp_path / path)
        assert run.load_run(tmp_path / path)[2] == "weights of step 10"
