"""Views of a picture, and restorations that are means over them."""

import json

import golden
import numpy as np
import pytest

from zmar_jax import cli
from zmar_jax.config import PRESETS
from zmar_jax.imaging.images import Photo, read_photo, write_photo
from zmar_jax.imaging.views import View, choose_views
from zmar_jax.restore.restorer import Restorer, Stage
from zmar_jax.weights import Weights, save_weights

TINY = PRESETS["tiny"]
PICTURE = np.random.default_rng(3).integers(0, 60, (24, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer(TINY, golden.params("tiny", seed=1))


def test_the_views_are_the_eight_symmetries_and_lead_back():
    views = choose_views(8, 0.0, 0.0)
    seen = {view.of(PICTURE).tobytes() + bytes(view.of(PICTURE).shape[:2]) for view in views}
    assert len(seen) == 8
    for view in views:
        np.testing.assert_array_equal(view.back(view.of(PICTURE)), PICTURE)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_up_to_four_views_keep_the_size_and_begin_with_the_picture(count):
    views = choose_views(count, 0.0, 0.0)
    assert len(views) == count
    assert views[0] == View()
    assert {view.of(PICTURE).shape for view in views} == {PICTURE.shape}


@pytest.mark.parametrize(
    ("brightness", "heat", "count"), [(0.0, 0.0, 1), (0.34, 0.0, 4), (0.34, 0.5, 1), (0.0, 0.5, 1)]
)
def test_auto_leaves_published_numbers_and_samples_as_they_are(brightness, heat, count):
    assert len(choose_views("auto", brightness, heat)) == count


def test_another_number_of_views_is_refused(restorer):
    with pytest.raises(ValueError, match="views must be auto, 1, 2, 4 or 8, got 3"):
        restorer(PICTURE, views=3)


def test_the_mean_of_all_views_turns_with_the_picture(restorer):
    whole = restorer(PICTURE, views=8)
    for view in choose_views(8, 0.0, 0.0)[1:]:
        turned = restorer(np.ascontiguousarray(view.of(PICTURE)), views=8)
        difference = np.abs(view.back(turned).astype(int) - whole)
        assert difference.max() <= 1  # of rounding
    alone = restorer(PICTURE[:, ::-1], views=1)[:, ::-1].astype(int)
    assert np.abs(alone - restorer(PICTURE, views=1)).max() > 1


def test_each_view_is_told_with_its_samples(restorer):
    told: list[Stage] = []
    seen = restorer.see(PICTURE)
    restorer.sample_seen(seen, 0.5, samples=2, views=2, tell=told.append)
    assert told == [Stage(view, 2, sample, 2) for view in (1, 2) for sample in (0, 1, 2)]


@pytest.mark.slow
def test_the_command_line_passes_the_views_on(restorer, tmp_path):
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, Weights(golden.params("tiny", 1), TINY, "safetensors", 0, 0, ()))
    for name in ("low", "gt"):
        write_photo(tmp_path / "pairs" / name / "a.png", Photo(PICTURE))
    given = ["-c", str(weights), "--views", "2", "-o", str(tmp_path / "out")]
    assert cli.main(["restore", str(tmp_path / "pairs" / "low"), *given]) == 0
    np.testing.assert_array_equal(
        read_photo(tmp_path / "out" / "a.png").rgb, restorer(PICTURE, views=2)
    )
    assert cli.main(["evaluate", "--data", str(tmp_path / "pairs"), *given]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["views"] == 2
    found = read_photo(tmp_path / "out" / "restored" / "a.png").rgb.astype(int)
    assert np.abs(found - restorer(PICTURE, views=2)).max() <= 1
    assert np.abs(found - restorer(PICTURE, views=1)).max() > 1
