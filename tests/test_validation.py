"""Validation: whole pictures of any size, scored once, over however many hosts."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zmar_jax.config import Config, DarkenConfig, DataConfig, ModelConfig
from zmar_jax.data import DataError
from zmar_jax.data.pipeline import make_loader
from zmar_jax.data.sources import Pictures, Subset
from zmar_jax.imaging.exposure import as_seen
from zmar_jax.imaging.metrics import score
from zmar_jax.runtime import memory, sharding
from zmar_jax.train import validation
from zmar_jax.train.validation import Validator

SIZES = [(24, 32), (17, 33), (24, 32), (21, 19), (24, 32)]


class Scaled:
    """In place of the model: its only parameter multiplies pixels, and heat would show."""

    def __init__(self, *_: Any): ...

    def apply(self, variables: Any, z: Any, lr: Any, mask: Any, method: str) -> tuple[Any, None]:
        assert method == "inverse"
        assert z.shape == (lr.shape[0], lr.shape[1] // 8, lr.shape[2] // 8, 192)
        return variables["params"] * (jnp.exp(lr) - 1e-3) + z.max(), None


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(validation, "ZmarSNFlow", Scaled)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    data = DataConfig(
        val_folder=str(tmp_path), data_dir=str(tmp_path / "data"), workers=0,
        darken=DarkenConfig((0.2, 0.2), kind="gain"),
    )  # fmt: skip
    return Config(model=ModelConfig(), data=data)


def expected(config: Config, factor: float) -> dict[str, float]:
    rows = []
    for batch in make_loader(dataclasses.replace(config.data, batch_size=1), "val"):
        low, gt = batch["low"][0], batch["gt"][0]
        found, given = (score(image, gt, "validation") for image in (factor * (low / 255), low))
        rows.append((found.psnr, found.ssim, given.psnr))
    means = np.mean(rows, 0).tolist()
    return dict(zip(("psnr", "ssim", "psnr_input"), means, strict=True))


@pytest.mark.parametrize("factor", [1.0, 2.9137])
def test_the_mean_over_pictures_of_odd_sizes(config: Config, factor: float) -> None:
    scores, panels = Validator(config, sharding.make_mesh())(jnp.float32(factor))
    assert scores == pytest.approx(expected(config, factor), rel=1e-5)
    assert (scores["psnr"] == scores["psnr_input"]) == (factor == 1)
    assert len(panels) == validation.PANELS
    for name, low, restored, gt in panels:
        assert low.shape == restored.shape == gt.shape == (*SIZES[int(name)], 3)
        np.testing.assert_allclose(restored, np.minimum(factor * low, 255), atol=0.51)


def test_asked_again_it_says_the_same(config: Config) -> None:
    validator = Validator(config, sharding.make_mesh())
    first = validator(jnp.float32(2.0))[0]
    assert validator(jnp.float32(3.0))[0] != first == validator(jnp.float32(2.0))[0]


def test_scores_are_of_the_same_pictures_where_a_run_goes_on(config: Config) -> None:
    mesh = sharding.make_mesh()
    state = Validator(config, mesh).get_state()
    Image.new("RGB", (24, 32)).save(Path(str(config.data.val_folder)) / "0.png")
    other = Validator(config, mesh)
    with pytest.raises(DataError, match=r"the validation pictures are not .*--accept-changes"):
        other.check_state(state)
    other.check_state(state, accept_changes=True)
    other.check_state({"step": 3})  # an older run
    other.check_state(other.get_state())


def test_a_pixel_that_is_not_finite_is_no_score(config: Config) -> None:
    scores, panels = Validator(config, sharding.make_mesh())(jnp.float32(np.nan))
    assert np.isnan([scores["psnr"], scores["ssim"]]).all()
    assert np.isfinite(scores["psnr_input"])
    assert all(restored.dtype == np.uint8 for _, _, restored, _ in panels)


def test_the_model_sees_exposed_pictures(config: Config) -> None:
    """What is shown and scored as the input stays as dark as it was."""
    model = dataclasses.replace(config.model, brightness=0.34)
    exposed = Validator(dataclasses.replace(config, model=model), sharding.make_mesh())
    scores, panels = exposed(jnp.float32(1.0))
    assert scores["psnr_input"] == expected(config, 1.0)["psnr_input"] != scores["psnr"]
    for _, low, restored, _ in panels:
        seen = as_seen(low, 0.34).image
        assert seen.mean() > 1.2 * low.mean()
        np.testing.assert_allclose(restored, seen, atol=1)


def test_a_picture_that_does_not_fit_is_named_before_it_is_restored(config, monkeypatch) -> None:
    validator = Validator(config, sharding.make_mesh())
    monkeypatch.setattr(memory, "free", lambda: 0)
    expected = r"^validation, of pictures of \d+x\d+ pixels, needs .* validate on smaller ones"
    with pytest.raises(memory.MemoryLimitError, match=expected):
        validator(jnp.float32(1.0))


def test_hosts_with_unequal_shares_count_each_picture_once(config: Config, monkeypatch) -> None:
    """Four hosts, one after the other, each of which knows what those before it have told."""
    told: list[np.ndarray] = []
    panels = []

    def gather(sums: np.ndarray) -> np.ndarray:
        told.append(sums)
        return np.stack(told)

    # pictures of one host are no global batch: its devices have all of them
    monkeypatch.setattr(sharding, "BATCH", sharding.REPLICATED)
    monkeypatch.setattr(sharding, "shard_batch", lambda batch, _: jax.tree.map(jnp.asarray, batch))
    monkeypatch.setattr(validation.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(validation, "together", lambda do: do())
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        scores, shown = Validator(config, sharding.make_mesh())(jnp.float32(2.9137))
        panels += shown
    assert [int(sums[3]) for sums in told] == [3, 1, 1, 0]
    assert sorted(name for name, *_ in panels) == ["0", "1", "2", "3", "4"]
    assert scores == pytest.approx(expected(config, 2.9137), rel=1e-5)


@pytest.mark.parametrize("most", [1, 3, 5, 9])
def test_a_bounded_validation_is_of_the_same_pictures_on_any_number_of_devices(
    config: Config, most: int
) -> None:
    """Each as it is among all."""
    bounded = dataclasses.replace(
        config, train=dataclasses.replace(config.train, validate_pictures=most)
    )
    found = []
    for devices in (1, 2, 4):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        scores, panels = Validator(bounded, mesh)(jnp.float32(2.9137))
        found.append((scores, {name: low for name, low, _, _ in panels}))
    names = {1: {"0"}, 3: {"0", "1", "3"}}.get(most, {"0", "1", "2", "3", "4"})
    every = {
        str(batch["id"][0]): batch["low"][0]
        for batch in make_loader(dataclasses.replace(config.data, batch_size=1), "val")
    }
    for scores, pictures in found:
        assert scores == pytest.approx(found[0][0], rel=1e-5)
        assert pictures.keys() <= names
        assert len(pictures) == min(len(names), validation.PANELS)
        assert all((every[name] == low).all() for name, low in pictures.items())
    if most >= len(SIZES):
        assert found[0][0] == pytest.approx(expected(config, 2.9137), rel=1e-5)


def test_hosts_share_a_bounded_validation(config: Config, monkeypatch) -> None:
    """Four hosts have one row of a batch of four each: together each picture once."""
    bounded = dataclasses.replace(
        config, train=dataclasses.replace(config.train, validate_pictures=3)
    )
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    names = []
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        for batch in Validator(bounded, sharding.make_mesh()).loader:
            names += batch["id"][batch["valid"]].tolist()
    assert sorted(names) == ["0", "1", "3"]


def test_names_of_a_bounded_validation_are_read_once() -> None:
    """As from shards, where each is read from a file."""
    read = []

    class Names(list[str]):
        def __getitem__(self, i: Any) -> Any:
            read.append(i)
            return super().__getitem__(i)

    names: Any = Pictures("photos", Names("abcdef"), "", lambda i: ())
    some = Subset(names, [1, 4])
    assert [some.ids[i] for i in (0, 1, 0, 1)] == ["b", "e", "b", "e"]
    assert read == [1, 4]
