"""What a file says beside its pixels: kept where it stays true, and one picture a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from zmar_jax.imaging.images import ImageError, Photo, read_photo, write_photo

SHOT, GPS = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def phone(orientation: int = 6) -> Image.Exif:
    """As of a telephone: date, camera and place, its maker's note, and a turn."""
    exif = Image.Exif()
    exif[271], exif[272], exif[315], exif[274] = "Maker", "Model", "Zoë", orientation
    exif[SHOT] = {
        36867: "2024:01:31 23:59:58",
        33434: 0.125,
        34855: 3200,
        37500: b"secrets",
        40962: 30,
        42033: "serial 123",
    }
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0)}
    return exif


def saved(kind: str, exif: Image.Exif, **options: Any) -> bytes:
    out = io.BytesIO()
    options |= {"exif": exif.tobytes(), "dpi": (300, 200)}
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


def read(folder: Path, data: bytes, **options: bool) -> Photo:
    (folder / "photo").write_bytes(data)
    return read_photo(folder / "photo", **options)


@pytest.mark.parametrize("target", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_date_and_camera_stay_and_the_rest_goes(tmp_path, kind, target):
    write_photo(tmp_path / target, read(tmp_path, saved(kind, phone())))
    with Image.open(tmp_path / target) as image:
        exif = image.getexif()
        assert image.size == (20, 30)
        assert (exif[271], exif[272], exif[274]) == ("Maker", "Model", 1)
        assert exif[315].encode("latin-1") in ("Zoë".encode("latin-1"), b"Zo?")
        shot = exif.get_ifd(SHOT)
        if not target.endswith("tif"):
            assert (shot[36867], shot[34855]) == ("2024:01:31 23:59:58", 3200)
            assert float(shot[33434]) == 0.125
        assert not {37500, 40962, 42033} & shot.keys()
        assert not exif.get_ifd(GPS)
        if "webp" not in (kind.lower(), target[2:]):
            assert image.info["dpi"] == pytest.approx(
                (300, 200) if kind == "TIFF" else (200, 300), abs=0.5
            )


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_the_place_is_kept_on_request(tmp_path, kind):
    write_photo(tmp_path / "a.png", read(tmp_path, saved(kind, phone()), gps=True))
    with Image.open(tmp_path / "a.png") as image:
        place = image.getexif().get_ifd(GPS)
    assert (place[1], tuple(map(float, place[2]))) == ("N", (52.0, 31.0, 12.0))


def test_what_the_numbers_of_a_png_mean_stays(tmp_path):
    info = PngImagePlugin.PngInfo()
    chunks = {b"gAMA": (100_000).to_bytes(4, "big"), b"cICP": bytes([9, 16, 0, 1])}
    untrue = {b"cLLI": bytes(8), b"mDCV": bytes(24)}  # of a picture that is brighter now
    for name, data in (chunks | untrue).items():
        info.add(name, data)
    photo = read(tmp_path, saved("PNG", phone(), pnginfo=info))
    assert dict(photo.notes.colours) == chunks
    deep = Photo(photo.rgb.astype(np.uint16) * 257, icc_profile=b"profile", notes=photo.notes)
    for name, again in (("a.png", photo), ("b.png", deep)):
        write_photo(tmp_path / name, again)
        back = read_photo(tmp_path / name)
        assert back.notes == photo.notes
        np.testing.assert_array_equal(back.rgb, again.rgb)


def test_strange_notes_are_no_reason_to_refuse(tmp_path):
    exif = phone(1)
    exif[270] = "x" * 100_000
    back = read(tmp_path, saved("TIFF", exif, resolution_unit=2))
    assert b"Model" in (back.notes.exif or b"")
    assert len(back.notes.exif or b"") < 1000
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG", dpi=(0, 0))
    assert read(tmp_path, plain.getvalue()).notes == Photo(PIXELS).notes


def test_a_maker_pushing_a_format_to_its_limit_is_written(tmp_path):
    exif = phone()
    for tag in (270, 306, 33432):
        exif[tag] = "x" * 999
    photo = read(tmp_path, saved("JPEG", exif))
    write_photo(tmp_path / "a.jpg", photo)
    assert read_photo(tmp_path / "a.jpg").notes.exif == photo.notes.exif


def several(kind: str, count: int = 3, **options) -> bytes:
    frames = [Image.new("RGB", (30, 20), 3 * (20 * i,)) for i in range(count)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_pictures_are_refused(tmp_path, kind):
    with pytest.raises(ImageError, match="photo: holds 3 pictures: save the one"):
        read(tmp_path, several(kind))


def test_what_a_telephone_puts_behind_its_picture_is_none(tmp_path):
    photo = read(tmp_path, several("MPO"))
    assert photo.rgb.mean() == 0


@pytest.mark.parametrize(("second", "count"), [(1, 1), (4, 1), (2, 2), (0, 2)])
def test_smaller_copies_and_masks_in_a_tiff_are_no_pictures(tmp_path, second, count):
    pages = [Image.fromarray(PIXELS) for _ in range(2)]
    pages[1].encoderinfo = {"tiffinfo": {254: second}}
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    if count == 1:
        np.testing.assert_array_equal(read(tmp_path, out.getvalue()).rgb, PIXELS)
    else:
        with pytest.raises(ImageError, match="holds 2 pictures"):
            read(tmp_path, out.getvalue())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.NEF", b"anything"),
        ("a.tif", b"FUJIFILMCCD-RAW 0201"),
        ("a", b"II*\0\x10\0\0\0CR\2\0"),
        ("a", b"\0\0\0\x18ftypcrx \0"),
        ("a.tif", saved("TIFF", Image.Exif(), tiffinfo={50706: b"\1\4\0\0"})),
        ("a.tif", saved("TIFF", Image.Exif(), tiffinfo={254: 1, 330: 8})),
    ],
)
def test_raw_data_is_refused_with_what_to_do(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=f"{name}: raw data of a camera.*: develop it first"):
        read_photo(tmp_path / name)
