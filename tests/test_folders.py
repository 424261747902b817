"""What a folder holds is told by names alone: pairs, photographs, or neither for certain."""

from pathlib import Path

import pytest

from zmar_jax.data import DataError
from zmar_jax.data.folders import choose, match, refuse_pairs, role_of, survey


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def two(*folders: str) -> list[str]:
    return [f"{folder}/{n}.png" for folder in folders for n in (1, 2)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("low", ("", "low")),
        ("LQ", ("", "low")),
        ("HQ", ("", "gt")),
        ("1_low", ("1", "low")),
        ("1_gt", ("1", "gt")),
        ("low_1", ("1", "low")),
        ("low00690", ("00690", "low")),
        ("Normal-a b", ("a b", "gt")),
        ("train_high", ("train", "gt")),
        ("highway", None),
        ("below", None),
        ("photos", None),
    ],
)
def test_words_in_names(name, said):
    assert role_of(name) == said


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (two("low", "gt"), "."),
        (two("LQ", "HQ"), "."),
        (two("input", "target"), "."),
        (two("dark", "bright", "notes"), "."),
        (two("1_low", "1_gt"), "1"),
        (two("our485/low", "our485/high", "eval15/low", "eval15/high"), "eval15"),
        (two("Train/input", "Train/target", "Test/input", "Test/target"), "Test"),
        (two("a/b/Low", "a/b/Normal"), "a/b"),
        (two("train_low", "train_high", "val_low", "val_high"), "val"),
        (["1_low.png", "1_gt.png", "2_low.jpg", "2_gt.png"], "."),
        (two("low", "gt", "low/deep", "gt/deep"), "."),
    ],
)
def test_pairs_to_test_on(names, place, tmp_path):
    found = choose(touch(tmp_path, *names), survey(tmp_path), ("test", "val"))
    assert found.place == place
    pairs = found.match()
    assert len(pairs) in (2, 4)
    assert all(low != gt for _, low, gt in pairs)
    with pytest.raises(DataError, match=r"holds pairs .*; say so"):
        refuse_pairs(tmp_path, survey(tmp_path), "say so")


def test_pairs_to_train_on(tmp_path):
    touch(tmp_path, *two("our485/low", "our485/high", "eval15/low", "eval15/high"))
    assert choose(tmp_path, survey(tmp_path), ("train",)).place == "our485"
    assert choose(tmp_path / "our485", survey(tmp_path / "our485"), ("train",)).place == "."


def test_several_sets_are_not_mixed(tmp_path):
    sets = [f"{kind}/{part}/{role}" for kind in ("Real", "Synthetic") for part in ("Train", "Test")
            for role in ("Low", "Normal")]  # fmt: skip
    touch(tmp_path, *two(*sets))
    for wanted in ("train", "test"):
        with pytest.raises(DataError, match=r"several sets .*: Real/Test, Real/Train, Synthetic/"):
            choose(tmp_path, survey(tmp_path), (wanted,))
    assert choose(tmp_path, survey(tmp_path / "Real"), ("test",)).place == "Test"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (two("low", "gt", "high"), "found low, gt, high"),
        (two("photos/low"), "found photos/low"),
        (two("high"), "found high"),
        (two("one", "other"), "found one, other"),
        (two("set/A", "set/B"), "found set/A, set/B"),
        ([*two("LR", "HR"), "LR/3.png"], "found HR, LR"),
        ([*two("short", "long"), "other/a.png"], "found long, short"),
        (two("LR", "HR", "mask"), "found HR, LR"),
        (two("scene1", "scene2", "scene3", "ref"), "found ref, scene1"),
        (
            [*two("trainA", "trainB"), *(f"test{x}/{n}.png" for x in "AB" for n in (8, 9))],
            "found testA, testB",
        ),
        ([f"{n}_{x}.png" for n in "abc" for x in ("LR", "HR")], r"found \*_hr, \*_lr"),
        (["deep/a.png", "deep/a_hr.png", "deep/b.png", "deep/b_hr.png"], r"deep/\*, deep/\*_hr"),
    ],
)
def test_what_may_be_pairs_is_no_folder_of_photographs(names, found, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=f"expected one subfolder called low.*{found}; say so"):
        refuse_pairs(tmp_path, survey(tmp_path), "say so")
    with pytest.raises(DataError, match=found):
        choose(tmp_path, survey(tmp_path), ("test",))


def test_the_dark_half_of_pairs_is_no_folder_of_photographs(tmp_path):
    touch(tmp_path, *two("train/LQ", "train/HQ", "alone/LQ"))
    with pytest.raises(DataError, match=r"LQ: lies beside HQ, so it holds the dark .*; say so"):
        refuse_pairs(tmp_path / "train/LQ", survey(tmp_path / "train/LQ"), "say so")
    for folder in ("train/HQ", "alone/LQ"):
        refuse_pairs(tmp_path / folder, survey(tmp_path / folder), "say so")


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "deep/b.jpg"],
        ["2019/1.png", "2020/1.png"],  # one name in two folders may be chance
        [*two("scene1", "scene2", "scene3")],
        ["high_noise/a.png", "b/low-key.png"],
        [*two("a", "b")[:3], *(f"{x}/{x}{n}.png" for x in "ab" for n in range(3))],
        [f"{day}_{n}.png" for day in ("mon", "tue") for n in (1, 2)][:3],
        ["a_1.png", "a_2.png", "b_1.png", "b_2.png"],
        [*(f"{n}.png" for n in range(9)), "1_edited.png", "2_edited.png"],
        ["coast_low.png", "hill_high.png", ".low/a.png", ".gt/a.png"],
    ],
)
def test_folders_of_photographs(names, tmp_path):
    touch(tmp_path, *names)
    refuse_pairs(tmp_path, survey(tmp_path), "")


def test_links_are_followed_but_not_for_ever(tmp_path):
    touch(tmp_path, *two("elsewhere/x", "elsewhere/y"))
    root = tmp_path / "root"
    root.mkdir()
    for name, target in (("low", "x"), ("gt", "y")):
        (root / name).symlink_to(tmp_path / "elsewhere" / target)
    (root / "again").symlink_to(root)
    assert [each.place for each in survey(root).sets] == ["."]


def test_a_word_in_both_names_is_no_role():
    names = [Path(f"{n}_{word}.png") for n in (1, 2) for word in ("low", "high")]
    pairs = match([(Path("a") / n, n) for n in names], [(Path("b") / n, n) for n in names])
    assert [id_ for id_, *_ in pairs] == ["1_high", "1_low", "2_high", "2_low"]


def test_files_of_one_folder_without_a_role_are_named(tmp_path):
    touch(tmp_path, "1_low.png", "1_gt.png", "other.png")
    with pytest.raises(DataError, match=r"neither low nor ground truth.*other\.png"):
        choose(tmp_path, survey(tmp_path), ("test",)).match()
