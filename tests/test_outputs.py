"""Where restored pictures go: names that do not meet, and a file where one is named."""

from pathlib import Path

import numpy as np
import pytest

from zmar_jax import cli
from zmar_jax.imaging.images import ImageError, Photo, find_photos, write_photo
from zmar_jax.imaging.outputs import bare_name, names_file, output_file, output_paths
from zmar_jax.restore import Options, restore_file

BLACK = Photo(np.zeros((16, 16, 3), np.uint8))


def names(folder: Path, *found: str) -> list[str]:
    paths = [(folder / name, Path(name)) for name in found]
    return [target.name for _, target in output_paths(paths, folder / "out")]


def test_equal_stems_keep_their_suffixes(tmp_path):
    found = names(tmp_path, "a.jpg", "a.TIF", "b.jpg")
    assert found == ["a.jpg.png", "a.TIF.png", "b.png"]


def test_what_is_no_suffix_of_a_picture_is_part_of_the_name(tmp_path):
    assert names(tmp_path, "IMG.0001", "IMG.0002") == ["IMG.0001.png", "IMG.0002.png"]
    assert bare_name(Path("a/b.c.dng")) == Path("a/b.c")


def test_all_that_meet_are_named(tmp_path):
    paths = [(tmp_path / f / f"{n}.png", Path(f"{n}.png")) for n in "xyz" for f in "ab"]
    with pytest.raises(ImageError) as error:
        output_paths(paths, tmp_path / "out")
    assert all(f"{name}.png" in str(error.value) for name in "xyz")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_written_beside_meets_nothing_either(tmp_path):
    paths = [(tmp_path / name, Path(name)) for name in ("b.jpg", "b.std.png")]
    with pytest.raises(ImageError, match=r"b\.std\.png: wanted by .*b\.jpg and .*b\.std\.png"):
        output_paths(paths, tmp_path, beside=lambda target: [target.with_suffix(".std.png")])


@pytest.mark.parametrize(
    ("name", "file"),
    [("a.png", True), ("a.gif", True), ("out", False), ("run.2024", False), ("v1.25", False)],
)
def test_a_name_tells_files_from_folders(tmp_path, name, file):
    assert names_file(tmp_path / name) == file
    (tmp_path / name).mkdir()
    assert not names_file(tmp_path / name)


def test_one_picture_becomes_the_file_that_is_named(tmp_path):
    write_photo(tmp_path / "a.png", BLACK)
    found = find_photos([tmp_path / "a.png"])
    assert output_file(found, tmp_path / "b.jpg") == [(tmp_path / "a.png", tmp_path / "b.jpg")]
    with pytest.raises(ImageError, match="would overwrite the input"):
        output_file(found, tmp_path / "a.png")
    with pytest.raises(ImageError, match="one file for 2 pictures: name a folder"):
        output_file([*found, *found], tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.gif: no kind of picture that is written: end its"):
        output_file(found, tmp_path / "b.gif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "{a}", "-o", "{folder}/b.gif"], "b.gif: no kind of picture that is written"),
        (["restore", "{a}", "-o", "{folder}/b.onnx"], "b.onnx: no kind of picture"),
        (["restore", "{a}", "{a}/../b.png", "-o", "{folder}/c.png"], "c.png: one file for 2"),
        (["restore", "-o", "{folder}/b.png"], "b.png: is to be a folder"),
        (["mask", "{a}", "{folder}/b.png"], "b.png: is to be a folder"),
        (["evaluate", "--data", "builtin", "-o", "{folder}/b.html"], "b.html: is to be a folder"),
    ],
)
def test_the_command_line_makes_no_folder_that_is_called_like_a_file(
    tmp_path, capsys, arguments, message
):
    for name in "ab":
        write_photo(tmp_path / f"{name}.png", BLACK)
    filled = [text.format(a=tmp_path / "a.png", folder=tmp_path) for text in arguments]
    assert cli.main(filled) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_format_that_cannot_hold_it_is_told_before_restoring(tmp_path):
    write_photo(tmp_path / "a.png", Photo(np.zeros((16, 16, 3), np.uint16)))
    with pytest.raises(ImageError, match="16 bits fit only PNG and TIFF"):
        restore_file(None, tmp_path / "a.png", tmp_path / "b.jpg", Options())  # pyright: ignore[reportArgumentType]
