"""Finding, pairing and checking the benchmarks' folders, good and malformed."""

import os
import shutil
import tempfile
from pathlib import Path

import benchmark_folders
import cv2
import numpy as np
import pytest
from benchmark_folders import LAYOUTS, SIZE, make, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zmar_jax.config.data import BENCHMARKS
from zmar_jax.data import DataError
from zmar_jax.data.layouts import check_source, count_warnings, find_source

CROP = min(SIZE)


def problems_of(name: str, root: Path, crop: int = CROP) -> list[str]:
    with pytest.raises(DataError) as raised:
        check_source(find_source(name, root), crop)
    first, *problems = str(raised.value).split("\n  ")
    assert f"{len(problems)} problem" in first
    assert "nothing was written" in first
    return problems


@pytest.mark.parametrize("key", LAYOUTS)
def test_every_layout_is_found_paired_and_split(key, tmp_path):
    name = make(key, tmp_path)
    source = find_source(name, tmp_path)
    assert source.root == tmp_path
    assert [(pair.split, pair.id) for pair in source.pairs] == [
        (split, id_) for split, (_, _, ids) in LAYOUTS[key].items() for id_ in ids
    ]
    for pair in source.pairs:
        low, gt, _ = LAYOUTS[key][pair.split]
        stem, scene = pair.id, pair.id.partition("/")[0]
        assert pair.low == tmp_path / low.format(stem)
        assert pair.gt == tmp_path / gt.format(stem, scene=scene)
    check_source(source, CROP)


def test_all_benchmarks_of_the_configuration_have_a_layout():
    assert {key.partition(" ")[0] for key in LAYOUTS} == set(BENCHMARKS)


@pytest.mark.parametrize("below", ["", "LOLv2", "data/LOLv2"])
def test_it_is_found_below_the_folder(below, tmp_path):
    make("lol_v2_real", tmp_path / below)
    make("sid", tmp_path / below)
    assert find_source("lol_v2_real", tmp_path).root == tmp_path / below


def test_the_first_folder_of_the_layout_will_do(tmp_path):
    name = make("lol_v2_synthetic", tmp_path)
    assert find_source(name, tmp_path / "Synthetic").root == tmp_path
    with pytest.raises(DataError, match="no lol_v2_synthetic in it"):
        find_source(name, tmp_path / "Synthetic" / "Train")


def test_folders_match_in_any_case_and_through_links(tmp_path):
    name = make("sdsd_indoor", tmp_path / "a")
    (tmp_path / "a/indoor_static_np/GT").rename(tmp_path / "a/indoor_static_np/gt")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    source = find_source(name, tmp_path / "b")
    assert len(source.pairs) == 7
    # twice the same, through the link
    assert len(find_source(name, tmp_path).pairs) == 7


def test_hidden_and_other_files_are_passed_over(tmp_path):
    name = make("lol_v1", tmp_path)
    for extra in ("._1.png", ".DS_Store", "Thumbs.db", "list.txt"):
        (tmp_path / "our485/low" / extra).write_bytes(b"x")
    check_source(find_source(name, tmp_path), CROP)


def test_ground_truth_of_sid_is_the_first_long_exposure(tmp_path):
    name = make("sid", tmp_path)
    write(tmp_path / "long_sid2/00001/00001_00_30s.npy", picture("other", "gt"))
    gts = {pair.gt.name for pair in find_source(name, tmp_path).pairs if "00001" in pair.id}
    assert gts == {"00001_00_10s.npy"}
    write(tmp_path / "long_sid2/00001/00001_00_02s.npy", picture("other", "gt"))
    gts = {pair.gt.name for pair in find_source(name, tmp_path).pairs if "00001" in pair.id}
    assert gts == {"00001_00_02s.npy"}


@given(
    st.sets(st.text("abc1", min_size=1, max_size=3), min_size=1, max_size=6),
    st.sets(st.text("abc1", min_size=1, max_size=3), min_size=1, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_files_pair_by_stem_and_the_rest_is_named(lows, gts):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split in ("Train", "Test"):
            for kind, prefix, stems in (("Low", "low", lows), ("Normal", "Normal_", gts)):
                place = root / "Real_captured" / split / kind
                place.mkdir(parents=True)
                for stem in stems:
                    (place / f"{prefix}{stem}.png").touch()
        source = find_source("lol_v2_real", root)
        assert [p.id for p in source.pairs if p.split == "test"] == sorted(lows & gts)
        for pair in source.pairs:
            assert pair.low.stem == f"low{pair.id}"
            assert pair.gt.stem == f"Normal_{pair.id}"
        lonely = [p for p in source.problems if "no partner" in p]
        assert len(lonely) == 2 * len(lows ^ gts)


def test_no_layout_shows_what_was_expected_and_found(tmp_path):
    (tmp_path / "our485/low").mkdir(parents=True)
    (tmp_path / "LOLdataset.zip").touch()
    with pytest.raises(DataError) as raised:
        find_source("lol_v1", tmp_path)
    message = str(raised.value)
    for part in (str(tmp_path), "eval15/low", "Train/input", "Test/target", "our485/low/"):
        assert part in message
    assert "LOLdataset.zip" in message


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("lol_v3", "", "expected one of lol_v1, lol_v2_real"),
        ("lol_v1", "missing", "no such folder"),
        ("lol_v1", "empty", "found nothing"),
    ],
)
def test_a_source_that_is_none(name, folder, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_source(name, tmp_path / folder)


def test_two_copies_are_ambiguous(tmp_path):
    make("lol_v1", tmp_path / "a")
    make("lol_v1 rf", tmp_path / "b")
    with pytest.raises(DataError, match=r"more than once; name one of .*/a, .*/b"):
        find_source("lol_v1", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read(tmp_path):
    name = make("lol_v1", tmp_path)
    (tmp_path / "our485/low").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        find_source(name, tmp_path)


def test_every_offender_of_a_png_set_is_listed(tmp_path):
    name = make("lol_v1", tmp_path)
    low, high = tmp_path / "our485/low", tmp_path / "our485/high"
    write(low / "lonely.png", picture("a", "low"))
    write(high / "widow.png", picture("a", "gt"))
    rgb = picture("a", "gt")
    bad = {
        "grey": rgb[..., 0],
        "alpha": np.dstack([rgb, rgb[..., 0]]),
        "deep": rgb[..., 0].astype(np.uint16),
        "wide": np.hstack([rgb, rgb]),
        "small": rgb[:8],
        "cut": rgb,
        "text": rgb,
        "jpeg": rgb,
        "twice": rgb,
        "NORMAL_twice": rgb,
        "\udcff": rgb,
    }
    for stem, pixels in bad.items():
        write(low / f"{stem}.png", pixels)
        write(high / f"{stem}.png", rgb)
    write(high / "small.png", rgb[:8])
    (high / "NORMAL_twice.png").unlink()
    (low / "cut.png").write_bytes((low / "cut.png").read_bytes()[:-100])
    (low / "text.png").write_text("no picture")
    Image.fromarray(rgb).save(low / "jpeg.png", "JPEG")
    Image.fromarray(rgb).save(low / "stray.bmp")
    expected = [
        (low / "lonely.png", f"no partner in {high}"),
        (high / "widow.png", f"no partner in {low}"),
        (low / "grey.png", "expected 3 channels, got 1"),
        (low / "alpha.png", "expected 3 channels, got 4"),
        (low / "wide.png", f"48x16, but {high / 'wide.png'} is 24x16"),
        (low / "small.png", "24x8, smaller than the crop 16x16"),
        (high / "small.png", "24x8, smaller than the crop 16x16"),
        (low / "cut.png", "cannot be read"),
        (low / "text.png", "cannot be read"),
        (low / "jpeg.png", "is not a PNG"),
        (low / "twice.png", f"pairs as twice, and so does {low / 'NORMAL_twice.png'}"),
        (low / "stray.bmp", "expected a .png file"),
        (low / "deep.png", "expected 3 channels, got 1"),
        (low / "\udcff.png", "its name is not UTF-8; rename it"),
    ]
    problems = problems_of(name, tmp_path)
    for path, reason in expected:
        assert [p for p in problems if p.startswith(f"{path}: ") and reason in p], (path, problems)
    assert len(problems) == len(expected), problems


def test_sixteen_bit_colour_is_a_wrong_dtype(tmp_path):
    name = make("lol_v1", tmp_path)
    path = tmp_path / "eval15/high/1.png"
    assert cv2.imwrite(str(path), picture("a", "gt").astype(np.uint16) * 257)
    assert problems_of(name, tmp_path) == [f"{path}: expected dtype uint8, got uint16"]


def test_every_offender_of_an_npy_set_is_listed(tmp_path):
    name = make("sdsd_indoor", tmp_path)
    low, gt = tmp_path / "indoor_static_np/input", tmp_path / "indoor_static_np/GT"
    frame = picture("a", "gt").astype(np.float32)
    nan = frame.copy()
    nan[3, 4, 1] = np.nan
    bad = {
        "flat": frame[..., 0],
        "four": np.dstack([frame, frame[..., :1]]),
        "ints": frame.astype(np.int32),
        "tall": np.vstack([frame, frame]),
        "nan": nan,
        "deep": frame * 257,
        "empty": frame[:0],
        "text": frame,
        "cut": frame,
    }
    for scene in ("pair3", "pair5"):
        (low / scene).mkdir()
        write(low / scene / "0001.npy", frame)
    for stem, pixels in bad.items():
        (gt / "pair3").mkdir(exist_ok=True)
        write(low / f"pair3/{stem}.npy", pixels)
        write(gt / f"pair3/{stem}.npy", frame)
    np.save(low / "pair3/object.npy", np.array([{}]), allow_pickle=True)
    write(gt / "pair3/object.npy", frame)
    write(low / "pair3/unit.npy", frame / 255)
    write(gt / "pair3/unit.npy", frame / 255)
    (low / "pair3/text.npy").write_text("no array")
    (low / "pair3/cut.npy").write_bytes((low / "pair3/cut.npy").read_bytes()[:-50])
    expected = [
        (low / "pair5", f"no partner in {gt}"),
        (low / "pair3/0001.npy", f"no partner in {gt / 'pair3'}"),
        (low / "pair3/flat.npy", "expected 3 channels, [H, W, 3], got (16, 24)"),
        (low / "pair3/four.npy", "expected 3 channels"),
        (low / "pair3/ints.npy", "expected dtype uint8 or float, got int32"),
        (low / "pair3/tall.npy", "24x32, but"),
        (low / "pair3/nan.npy", "expected values 0-255"),
        (low / "pair3/deep.npy", "expected values 0-255"),
        (low / "pair3/empty.npy", ""),
        (low / "pair3/object.npy", "cannot be read"),
        (gt / "pair3/unit.npy", "expected values 0-255, got 0"),
        (low / "pair3/text.npy", "cannot be read"),
        (low / "pair3/cut.npy", "cannot be read"),
    ]
    problems = problems_of(name, tmp_path)
    for path, reason in expected:
        assert [p for p in problems if p.startswith(f"{path}: ") and reason in p], (path, problems)
    assert len(problems) == len(expected), problems


def test_sid_scenes_without_exposures_or_split(tmp_path):
    name = make("sid", tmp_path)
    short, long = tmp_path / "short_sid2", tmp_path / "long_sid2"
    for scene in ("00002", "x1"):
        (short / scene).mkdir()
        (long / scene).mkdir()
    write(short / "00002/00002_00_0.1s.npy", picture("a", "low"))
    write(short / "x1/x1_00_0.1s.npy", picture("a", "low"))
    (long / "10099").mkdir()
    assert problems_of(name, tmp_path) == [
        f"{long / '00002'}: no exposure in it",
        f"{long / '10099'}: no partner in {short}",
        f"{short / 'x1'}: its name tells no split; expected 0, 1 or 2 first",
    ]


def test_a_set_without_a_split_is_refused(tmp_path):
    name = make("sdsd_indoor", tmp_path)
    for scene in ("pair1", "pair1_2", "pair21"):
        for kind in ("input", "GT"):
            shutil.rmtree(tmp_path / "indoor_static_np" / kind / scene)
    assert problems_of(name, tmp_path) == [f"{tmp_path}: no pairs to test"]


def test_npy_sets_are_cropped_after_resizing(tmp_path):
    name = make("sid", tmp_path)
    check_source(find_source(name, tmp_path), 512)
    assert problems_of(name, tmp_path, 513) == [
        f"{tmp_path}: prepared at 960x512, smaller than the crop 513"
    ]


def test_a_shared_ground_truth_is_read_and_named_once(tmp_path):
    name = make("sid", tmp_path)
    path = tmp_path / "long_sid2/00001/00001_00_10s.npy"
    path.write_bytes(b"")
    (problem,) = problems_of(name, tmp_path)
    assert problem.startswith(f"{path}: cannot be read")


def test_steps_are_told_of_each_pair(tmp_path):
    source = find_source(make("lol_v1", tmp_path), tmp_path)
    seen = []
    check_source(source, CROP, lambda low, gt, error: seen.append((low, gt, error)))
    assert seen == [(pair.low, pair.gt, None) for pair in source.pairs]


def test_warnings_of_counts_and_scenes(tmp_path):
    warnings = count_warnings(find_source(make("sid", tmp_path / "sid"), tmp_path / "sid"))
    assert warnings == [
        "sid: 3 pairs to train, the published set has 2099",
        "sid: 1 pairs to test, the published set has 598",
    ]
    source = find_source(make("sdsd_indoor", tmp_path / "in"), tmp_path / "in")
    assert count_warnings(source) == [
        "sdsd_indoor: published test scenes are missing: pair4, pair9, pair11, pair19"
    ]


def test_a_complete_set_gives_no_warning(tmp_path, monkeypatch):
    ids = tuple(f"{n:05}" for n in range(1, 690))
    tested = tuple(f"{n:05}" for n in range(690, 790))
    splits = LAYOUTS["lol_v2_real"]
    full = {"train": (*splits["train"][:2], ids), "test": (*splits["test"][:2], tested)}
    monkeypatch.setitem(LAYOUTS, "lol_v2_real", full)
    monkeypatch.setattr(benchmark_folders, "write", lambda path, image: path.touch())
    assert count_warnings(find_source(make("lol_v2_real", tmp_path), tmp_path)) == []
