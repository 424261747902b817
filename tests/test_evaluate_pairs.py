"""What --data names, which pictures pair, and which numbers may stand in one column."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import benchmark_folders
import numpy as np
import pytest

from zmar_jax import cli
from zmar_jax.config import BENCHMARKS, DarkenConfig, MaskConfig
from zmar_jax.data import DataError, datasets
from zmar_jax.evaluate import table
from zmar_jax.evaluate.evaluation import summarize
from zmar_jax.evaluate.measures import measures_of
from zmar_jax.evaluate.pairs import Source, kind_of, open_pairs
from zmar_jax.evaluate.records import Records
from zmar_jax.imaging.images import Photo, read_photo, write_photo

NO_MASKS = MaskConfig(source="none")


def picture(seed: int, size: tuple[int, int] = (20, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (*size, 3), np.uint8)


def put(path: Path, pixels: np.ndarray) -> None:
    write_photo(path, Photo(pixels))


@pytest.mark.parametrize(
    ("low", "gt"), [("low", "gt"), ("low", "high"), ("Low", "Normal"), ("input", "target")]
)
def test_folders_of_pairs(low, gt, tmp_path):
    put(tmp_path / low / "night" / "low007.png", picture(1))
    put(tmp_path / gt / "night" / "normal007.bmp", picture(2))
    put(tmp_path / low / "2.png", picture(3, (16, 40)))
    put(tmp_path / gt / "2.tif", picture(4, (16, 40)))
    assert kind_of(str(tmp_path)) == "pairs"
    pairs = open_pairs(Source(str(tmp_path), masks=NO_MASKS))
    assert pairs.ids == ("2", "night/low007")
    assert pairs.sizes == ((16, 40), (20, 28))
    for i, seed in ((0, 3), (1, 1)):
        for found, expected in zip(pairs.read(i), (seed, seed + 1), strict=True):
            assert np.array_equal(found, picture(expected, pairs.sizes[i]))


def test_digests_follow_the_files_and_the_masks(tmp_path):
    for name in ("low/1.png", "gt/1.png", "low/2.png", "gt/2.png"):
        put(tmp_path / "pairs" / name, picture(len(name)))
    put(tmp_path / "masks" / "m.png", np.uint8(255 * np.eye(8)[..., None].repeat(3, -1)))
    masked = Source(str(tmp_path / "pairs"), masks=MaskConfig(source=str(tmp_path / "masks")))
    first = open_pairs(masked)
    put(tmp_path / "pairs" / "gt" / "2.png", picture(9))
    second = open_pairs(masked)
    assert first.digests[0] == second.digests[0]
    assert first.digests[1] != second.digests[1]
    low, _ = second.read(0)
    assert 0 < (low == 0).all(-1).mean() < 0.3
    put(tmp_path / "masks" / "m.png", np.uint8(255 * np.eye(9)[..., None].repeat(3, -1)))
    assert open_pairs(masked).digests[0] != second.digests[0]


def test_photographs_are_degraded_as_the_command_mask_does(tmp_path):
    for name in ("a.png", "deep/b.png"):
        put(tmp_path / "photos" / name, picture(len(name), (40, 50)))
    grey = np.repeat(picture(7, (40, 50))[..., :1], 3, -1)
    write_photo(tmp_path / "photos" / "grey.png", Photo(grey, grey=True))
    options = ["--darken", "--seed", "5", "--exposure", "0.1:0.2"]
    assert cli.main(["mask", str(tmp_path / "photos"), str(tmp_path / "out"), *options]) == 0
    darken = DarkenConfig(exposure=(0.1, 0.2), kind="gain")
    pairs = open_pairs(Source(str(tmp_path / "photos"), darken=darken, seed=5))
    assert pairs.ids == ("a", "deep/b", "grey")
    for i, id_ in enumerate(pairs.ids):
        low, gt = pairs.read(i)
        assert np.array_equal(low, read_photo(tmp_path / "out" / "images" / f"{id_}.png").rgb)
        assert np.array_equal(gt, read_photo(tmp_path / "photos" / f"{id_}.png").rgb)


def test_equal_names_keep_their_suffixes_and_masks_are_as_the_command_makes_them(tmp_path):
    for name in ("a.png", "a.bmp", "IMG.0001.png", "IMG.0002.png"):
        put(tmp_path / "photos" / name, picture(len(name), (40, 50)))
    assert cli.main(["mask", str(tmp_path / "photos"), str(tmp_path / "out"), "--darken"]) == 0
    pairs = open_pairs(Source(str(tmp_path / "photos"), masks=MaskConfig()))
    assert sorted(pairs.ids) == ["IMG.0001", "IMG.0002", "a.bmp", "a.png"]
    for i, id_ in enumerate(pairs.ids):
        made = read_photo(tmp_path / "out" / "images" / f"{id_}.png").rgb
        assert np.array_equal(pairs.read(i)[0], made)


def test_files_that_are_no_masks_are_told(tmp_path):
    put(tmp_path / "dark" / "a.png", picture(0, (200, 200)))
    put(tmp_path / "masks" / "m.png", np.uint8(255 * np.eye(9)[..., None].repeat(3, -1)))
    (tmp_path / "masks" / "m.dng").write_bytes(b"")
    source = Source(
        str(tmp_path / "dark"), masks=MaskConfig(str(tmp_path / "masks")), reference=False
    )
    (note,) = open_pairs(source).notes
    assert "m.dng" in note


def test_pairs_are_not_darkened_again(tmp_path, capsys):
    for role in ("low", "high"):
        put(tmp_path / "pairs" / role / "a.png", picture(0, (40, 50)))
    assert cli.main(["mask", str(tmp_path / "pairs"), str(tmp_path / "out"), "--darken"]) == 1
    assert "holds pairs" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    assert cli.main(["mask", str(tmp_path / "pairs"), str(tmp_path / "out")]) == 0


def test_a_benchmark_gives_its_test_split_and_the_frames_asked_for(tmp_path):
    benchmark_folders.make("sdsd_indoor", tmp_path / "source")
    datasets.prepare("sdsd_indoor", tmp_path / "source", tmp_path, 16, warn=lambda text: None)
    source = Source("sdsd_indoor", tmp_path, NO_MASKS)
    pairs = open_pairs(source)
    assert pairs.ids == ("pair1/0001", "pair1/0002", "pair1_2/0001", "pair21/0001")
    assert pairs.sizes == ((512, 960),) * 4
    few = open_pairs(dataclasses.replace(source, sdsd_frames=1))
    assert few.ids == ("pair1/0001", "pair1_2/0001", "pair21/0001")
    assert few.digests == tuple(pairs.digests[i] for i in (0, 2, 3))
    prepared = datasets.open_prepared("sdsd_indoor", tmp_path, "test")
    low, gt = few.read(2)
    assert np.array_equal(low, prepared[3][1])
    assert np.array_equal(gt, prepared[3][2])
    masked = open_pairs(dataclasses.replace(source, masks=MaskConfig()))
    lost = (masked.read(0)[0] == 0).all(-1)
    assert 0.12 <= lost.mean() <= 0.4
    assert np.array_equal(masked.read(0)[0][~lost], pairs.read(0)[0][~lost])


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({"low/1.png": (20, 20)}, ["one called gt, high, normal or target", "found low"]),
        (
            {"low/1.png": (20, 20), "gt/1.png": (20, 20), "high/1.png": (20, 20)},
            ["found low, gt, high"],
        ),
        (
            {"low/1.png": (20, 20), "low/2.png": (20, 20), "gt/1.png": (20, 20)},
            ["low/2.png: no partner"],
        ),
        ({"low/1.png": (20, 24), "gt/1.png": (24, 20)}, ["1.png: 24x20, but", "1.png is 20x24"]),
        ({"low/1.png": (15, 20), "gt/1.png": (15, 20)}, ["20x15, smaller than 16x16"]),
        ({"low/1.png": (20, 20), "gt/1.png": None}, ["gt/1.png: cannot be read"]),
        ({"low/a.png": (20, 20), "low/A.bmp": (20, 20), "gt/a.png": (20, 20)}, ["pairs as a"]),
        (
            dict.fromkeys(("a.png", "a.bmp", "a.png.bmp"), (20, 20)),
            ["more than one photograph called a.png"],
        ),
        ({"notes/readme.png": None}, ["readme.png: cannot be read"]),
    ],
)
def test_folders_that_are_refused(files, problems, tmp_path):
    for name, size in files.items():
        if size:
            put(tmp_path / name, picture(0, size))
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(DataError) as error:
        open_pairs(Source(str(tmp_path), masks=NO_MASKS))
    for problem in problems:
        assert problem in str(error.value)


def test_without_reference_a_folder_holds_dark_pictures(tmp_path):
    put(tmp_path / "a.png", picture(1, (96, 200)))
    put(tmp_path / "deep" / "b.jpg", picture(2, (200, 96)))
    source = Source(str(tmp_path), masks=NO_MASKS, reference=False)
    assert kind_of(str(tmp_path), reference=False) == "dark"
    pairs = open_pairs(source)
    assert (pairs.kind, pairs.ids) == ("dark", ("a", "deep/b"))
    assert pairs.sizes == ((96, 200), (200, 96))
    low, gt = pairs.read(0)
    assert np.array_equal(low, picture(1, (96, 200)))
    assert gt is None
    masked, _ = open_pairs(dataclasses.replace(source, masks=MaskConfig())).read(0)
    assert 0.1 < (masked == 0).all(-1).mean() < 0.5


def test_without_reference_a_folder_of_pairs_gives_its_dark_ones(tmp_path):
    for name in ("low/1.png", "gt/1.png"):
        put(tmp_path / name, picture(len(name), (96, 200)))
    pairs = open_pairs(Source(str(tmp_path), masks=NO_MASKS, reference=False))
    assert pairs.ids == ("1",)
    assert np.array_equal(pairs.read(0)[0], picture(len("low/1.png"), (96, 200)))


def test_pictures_too_small_for_niqe_are_all_named(tmp_path):
    put(tmp_path / "a.png", picture(1, (95, 300)))
    put(tmp_path / "b.png", picture(1, (191, 191)))
    put(tmp_path / "c.png", picture(1, (192, 96)))
    with pytest.raises(DataError) as error:
        open_pairs(Source(str(tmp_path), masks=NO_MASKS, reference=False))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("2 picture(s)")
    assert "a.png: 300x95, too small for NIQE: it needs two patches of 96x96" in lines[1]
    assert "b.png: 191x191" in lines[2]


@pytest.mark.parametrize("role", [("LQ", "HQ"), ("our485/low", "our485/high"), ("1_low", "1_gt")])
def test_pairs_are_found_wherever_they_lie(role, tmp_path):
    for name, level in zip(role, (1, 2), strict=True):
        put(tmp_path / "root" / name / "a.png", picture(level))
    pairs = open_pairs(Source(str(tmp_path / "root"), masks=NO_MASKS))
    assert (pairs.kind, pairs.ids) == ("pairs", ("a",))
    for found, level in zip(pairs.read(0), (1, 2), strict=True):
        assert np.array_equal(found, picture(level))


def test_of_a_root_with_parts_the_test_pairs_are_taken_and_named(tmp_path):
    for name in ("our485/low/1", "our485/high/1", "eval15/low/2", "eval15/high/2"):
        put(tmp_path / "LOL" / f"{name}.png", picture(len(name)))
    pairs = open_pairs(Source(str(tmp_path / "LOL"), masks=NO_MASKS))
    assert (pairs.name, pairs.ids) == ("LOL/eval15", ("2",))
    assert pairs.notes == (f"{tmp_path / 'LOL'}: the pairs of eval15 in it are taken",)


def test_two_folders_of_any_name_may_be_said_to_pair_or_to_be_clean(tmp_path):
    for name in ("A/1", "A/2", "B/1", "B/2"):
        put(tmp_path / f"{name}.png", picture(ord(name[0])))
    (tmp_path / "B" / "notes.txt").write_text("")
    with pytest.raises(DataError, match="found A, B; name both folders with --data and --gt"):
        open_pairs(Source(str(tmp_path), masks=NO_MASKS))
    assert open_pairs(Source(str(tmp_path), masks=NO_MASKS, clean=True)).kind == "photographs"
    source = Source(str(tmp_path / "A"), masks=NO_MASKS, gt=str(tmp_path / "B"))
    pairs = open_pairs(source)
    assert (pairs.kind, pairs.name, pairs.ids) == ("pairs", "A", ("1", "2"))
    assert pairs.notes == (f"{tmp_path / 'B'}: not read as pictures: 1 .txt (notes.txt)",)
    low, gt = pairs.read(0)
    assert gt is not None
    assert not np.array_equal(low, gt)


def test_a_csv_is_no_formula_and_an_equal_picture_has_an_infinite_psnr(tmp_path):
    settings = {
        **{"data": "d", "kind": "pairs", "masks": "none", "protocol": "zmar", "gt_mean": False},
        **{"weights": "0", "seed": 0, "heat": 0.0, "samples": 1, "views": 1},
    }
    records, found = Records(tmp_path, settings), []
    values = dict.fromkeys(measures_of("pairs").keys, 0.5) | {"height": 1, "width": 1}
    for id_, psnr in (("=1+1", math.inf), ("-a", 20.0), ("b", 30.0)):
        gt = picture(1)
        found.append(records.add(id_, "", gt, None, values | {"psnr": psnr, "seconds": 1.0}))
    result = summarize(settings, found)
    assert dict(fact[:2] for fact in table.facts(result))["PSNR"] == "infinite"
    assert "| this evaluation | infinite / 0.500" in table.compare(result).markdown()
    table.write_numbers(result, tmp_path)
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["'=1+1", "'-a", "b"]
    assert [float(row["psnr"]) for row in rows] == [math.inf, 20.0, 30.0]
    metrics = json.loads(
        (tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    assert metrics["mean"]["psnr"] == {
        "mean": None,
        "low": None,
        "high": None,
        "infinite": ["mean"],
    }
    assert "infinite" not in metrics["mean"]["ssim"]
    assert [image.get("infinite") for image in metrics["per_image"]] == [["psnr"], None, None]
    broken = summarize(settings, [*found, found[2] | {"psnr": None}])
    assert table.interval(broken, "psnr", 2) == "not finite"


def numbers(data: str, kind: str, **changes) -> table.Table:
    record = dict.fromkeys(("psnr", "ssim", "bits_per_dim", "psnr_input", "ssim_input"), 0.5)
    records = [
        {"id": "a", "lost_share": 0.25, "seconds": 1.0, **record, "psnr": 21.5 + i} for i in (0, 1)
    ]
    base = {"weights": "0", "seed": 0, "data": data, "kind": kind, "masks": "procedural"}
    base |= {
        "protocol": "zmar",
        "gt_mean": False,
        "heat": 0.0,
        "samples": 1,
        "views": 1,
    }
    return table.compare(summarize(base | changes, records))


def test_published_numbers_stand_in_our_column_only_if_measured_alike():
    alike = numbers("lol_v2_real", "benchmark")
    assert alike.head == ("PSNR / SSIM", "masked inputs, protocol zmar")
    assert alike.rows[-3:-1] == (
        ("ZMAR-SNFlow, published", "24.15 / 0.862"),
        ("this evaluation", "22.00 (21.50 to 22.50) / 0.500 (0.500 to 0.500)"),
    )
    assert any("did not publish their masks" in note for note in alike.notes)
    for change in ({"masks": "none"}, {"protocol": "rf"}, {"gt_mean": True}):
        other = numbers("lol_v2_real", "benchmark", **change)
        assert len(other.head) == 3
        assert other.head[1] == alike.head[1]
        for name, published, own in other.rows:
            assert bool(published) != bool(own)
            assert bool(published) == name.endswith("published")
        assert any("no number of another column" in note for note in other.notes)


def test_other_pictures_have_no_published_numbers():
    for data in ("lol_v1", "mine"):  # a folder may be called as a benchmark is
        found = numbers(data, "pairs", masks="none")
        assert [row[0] for row in found.rows] == ["this evaluation", "its inputs"]
        assert found.head[1] == "pairs as given, protocol zmar"


def test_the_published_numbers_stand_below_the_right_benchmark():
    assert tuple(table.PUBLISHED) == BENCHMARKS
    assert all(len(methods) == 6 for methods in table.PUBLISHED.values())
    assert table.PUBLISHED["lol_v1"]["ZMAR-SNFlow"] == "23.37 / 0.843"
    assert table.PUBLISHED["sdsd_outdoor"]["Restormer"] == "27.56 / 0.835"
    assert table.PUBLISHED["sid"]["MIRNet"] == "20.82 / 0.605"


def test_markdown_escapes_what_would_end_a_cell():
    text = table.Table(("a", "b"), (("x|y", "1"),), ("note",)).markdown()
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n\n* note\n"
