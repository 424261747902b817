"""The file edge: every mode, format and depth there and back, and every way it can go wrong."""

import contextlib
import io
import os
import resource
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from zmar_jax.imaging.images import (
    SUFFIXES,
    WRITTEN,
    ImageError,
    Photo,
    find_photos,
    read_photo,
    write_photo,
)
from zmar_jax.imaging.outputs import output_paths

RNG = np.random.default_rng(0)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = [  # suffix, dtype, grey, alpha: all that a lossless format can hold
    (suffix, dtype, grey, alpha)
    for suffix, deep, transparent in (
        (".png", 1, 1),
        (".TIF", 1, 1),
        (".webp", 0, 1),
        (".bmp", 0, 0),
    )
    for dtype in (np.uint8, np.uint16)[: 1 + deep]
    for grey in (False, True)
    for alpha in (False, True)[: 1 + transparent]
]


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def make(height: int, width: int, dtype: type = np.uint8, grey=False, alpha=False) -> Photo:
    rgb = noise(height, width, 1 if grey else 3, dtype=dtype).repeat(3 if grey else 1, axis=2)
    return Photo(rgb, noise(height, width, dtype=dtype) if alpha else None, grey)


def png(pixels: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A 16-bit PNG of `pixels` [H, W, C], for the kinds that no library here writes."""
    height, width = pixels.shape[:2]
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(8)
    size = np.array([width, height], ">u4").tobytes()
    PngImagePlugin.putchunk(file, b"IHDR", size + bytes([16, colour, 0, 0, 0]))
    for name, data in chunks:
        PngImagePlugin.putchunk(file, name, data)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
    PngImagePlugin.putchunk(file, b"IEND", b"")
    return file.getvalue()


def tiff(pixels: np.ndarray, photometric: int, **tags: int) -> bytes:
    """An uncompressed TIFF of `pixels` [H, W, C] with any `tags` (t338=1), for the same kinds."""
    height, width, channels = pixels.shape
    bits = tuple([pixels.itemsize * 8] * channels)
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    ifd[256], ifd[257], ifd[258], ifd[259], ifd[262] = width, height, bits, 1, photometric
    ifd[273], ifd[277], ifd[278], ifd[279] = 0, channels, height, pixels.nbytes
    for tag, value in tags.items():
        ifd[int(tag[1:])] = value
    file = io.BytesIO()
    ifd.save(file)
    return file.getvalue() + pixels.tobytes()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(folder: Path, data: bytes) -> Photo:
    (folder / "photo").write_bytes(data)
    return read_photo(folder / "photo")


@contextlib.contextmanager
def fails(*words: object) -> Iterator[None]:
    """Expects an ImageError of one line with all `words`."""
    with pytest.raises(ImageError) as error:
        yield
    check_message(error.value, *words)


def check_message(error: ImageError, *words: object) -> None:
    assert len(str(error).splitlines()) == 1
    for word in words:
        assert str(word) in str(error)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 40))
def test_lossless_round_trip(tmp_path_factory, kind, height, width):
    suffix, dtype, grey, alpha = kind
    photo = make(height, width, dtype, grey, alpha)
    path = tmp_path_factory.getbasetemp() / "naïve 写真" / f"ночь{suffix}"
    write_photo(path, photo)
    back = read_photo(path)
    np.testing.assert_array_equal(back.rgb, photo.rgb)
    assert back.rgb.dtype == dtype
    assert back.rgb.flags.c_contiguous
    assert back.rgb.flags.writeable
    assert back.grey == (grey and suffix != ".webp" and not (alpha and dtype == np.uint16))
    assert (back.alpha is None) == (photo.alpha is None)
    if back.alpha is not None:
        np.testing.assert_array_equal(back.alpha, photo.alpha)
        assert back.alpha.dtype == dtype
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_is_fine_and_unsubsampled(tmp_path, grey):
    flat = np.zeros((32, 32, 3), np.uint8)
    flat[::2, :, 0], flat[1::2, :, 2] = 200, 200  # chroma that subsampling would average away
    write_photo(tmp_path / "a.JPG", Photo(flat, grey=grey))
    with Image.open(tmp_path / "a.JPG") as image:
        assert image.mode == ("L" if grey else "RGB")
    back = read_photo(tmp_path / "a.JPG")
    assert back.grey == grey
    expected = flat @ [0.299, 0.587, 0.114] if grey else flat[..., 0]
    assert abs(back.rgb[..., 0] - expected).max() < 12


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_written_as_rec601_luminance(tmp_path, dtype):
    rgb = noise(9, 7, 3, dtype=dtype)
    write_photo(tmp_path / "a.png", make(9, 7, dtype, grey=True).with_rgb(rgb))
    luminance = read_photo(tmp_path / "a.png").rgb[..., 1]
    assert abs(luminance - rgb @ [0.299, 0.587, 0.114]).max() <= (1 if dtype == np.uint8 else 4)


def test_with_rgb_refuses_another_shape_or_dtype():
    for other in (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint16)):
        with pytest.raises(ValueError, match="uint8"):
            make(5, 4).with_rgb(other)


COLOUR, MASK = noise(6, 5, 3), noise(6, 5)
PALETTE = Image.fromarray(COLOUR).quantize(8)
SPOT = tuple(COLOUR[2, 3].tolist())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_reads_8_bit_modes(tmp_path, kind, mode):
    image = PALETTE if mode == "P" else Image.fromarray(COLOUR).convert(mode)
    photo = read(tmp_path, saved(image, kind))
    np.testing.assert_array_equal(photo.rgb, np.asarray(image.convert("RGB")))
    assert (photo.grey, photo.alpha) == (mode in "1L", None)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(np.dstack([MASK, MASK])), {}),
        (PALETTE, {"transparency": bytes(range(0, 80, 10))}),
        (PALETTE, {"transparency": 3}),
        (Image.fromarray(COLOUR), {"transparency": SPOT}),
        (Image.fromarray(MASK), {"transparency": int(MASK[1, 1])}),
    ],
)
def test_png_transparency_becomes_alpha(tmp_path, image, options):
    data = saved(image, "PNG", **options)
    photo = read(tmp_path, data)
    with Image.open(io.BytesIO(data)) as again:
        expected = np.asarray(again.convert("RGBA"))
    assert photo.alpha is not None
    np.testing.assert_array_equal(np.dstack([photo.rgb, photo.alpha]), expected)
    assert photo.alpha.min() < 255


def test_cmyk_jpeg_becomes_rgb_without_its_profile(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    photo = read(tmp_path, saved(image, "JPEG", icc_profile=ICC))
    assert abs(photo.rgb - np.array([255.0, 0, 0])).max() < 6
    assert photo.icc_profile is None


DEEP = noise(6, 5, 4, dtype=np.uint16)
BIG = DEEP[..., :1].tobytes(), DEEP[2, 3].astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("data", "rgb", "alpha"),
    [
        (png(DEEP[..., :2], 4), DEEP[..., :1], DEEP[..., 1]),
        (png(DEEP[..., :1], 0, (b"tRNS", BIG[1][:2])), DEEP[..., :1], "spot"),
        (png(DEEP[..., :3], 2, (b"tRNS", BIG[1][:6])), DEEP[..., :3], "spot"),
        (png(DEEP, 6), DEEP[..., :3], DEEP[..., 3]),
        (tiff(DEEP[..., :1], 1), DEEP[..., :1], None),
        (tiff(DEEP[..., :1], 0), 65535 - DEEP[..., :1], None),
        (tiff(DEEP[..., :3], 2, t65000=3), DEEP[..., :3], None),
        (tiff(DEEP, 2, t338=2), DEEP[..., :3], DEEP[..., 3]),
        (tiff(DEEP, 2, t338=0), DEEP[..., :3], None),
        (saved(Image.frombytes("I;16B", (5, 6), BIG[0]), "TIFF"), DEEP[..., :1].byteswap(), None),
    ],
)
def test_reads_16_bits_in_full(tmp_path, capfd, data, rgb, alpha):
    photo = read(tmp_path, data)
    np.testing.assert_array_equal(photo.rgb, np.broadcast_to(rgb, (6, 5, 3)))
    assert photo.grey == (rgb.shape[2] == 1)
    if isinstance(alpha, str):
        alpha = np.full((6, 5), 65535)
        alpha[2, 3] = 0
    assert (photo.alpha is None) == (alpha is None)
    assert alpha is None or (photo.alpha == alpha).all()
    assert capfd.readouterr() == ("", "")


def oriented_files(orientation: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """(file that says `orientation`, its pixels [H, W, 3] as stored), all formats and depths."""
    exif = Image.Exif()
    exif[274] = orientation
    smooth = [[[10 * x, 15 * y, 9 * x] for x in range(24)] for y in range(16)]
    smooth = np.array(smooth, np.uint8)
    deep = noise(16, 24, 3, dtype=np.uint16)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        yield saved(Image.fromarray(smooth), kind, exif=exif, **options), smooth
    yield png(deep, 2, (b"eXIf", exif.tobytes()[6:])), deep
    yield tiff(deep, 2, t274=orientation), deep
    yield tiff(deep[..., :1], 1, t274=orientation), deep[..., :1].repeat(3, axis=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a.swapaxes(0, 1), 2),
        np.rot90,
    ]
    for data, stored in oriented_files(orientation):
        rgb, upright = read(tmp_path, data).rgb, turns[orientation - 1](stored)
        assert rgb.shape == upright.shape
        assert abs(rgb - upright.astype(float)).max() <= (20 if data[:2] == b"\xff\xd8" else 0)


def test_broken_exif_is_ignored(tmp_path):
    data = saved(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0no such thing")
    np.testing.assert_array_equal(read(tmp_path, data).rgb, COLOUR)


@pytest.mark.parametrize(
    ("name", "dtype", "grey", "kept"),
    [
        *((f"a{suffix}", np.uint8, False, True) for suffix in (".png", ".jpg", ".webp", ".tif")),
        ("a.png", np.uint16, False, True),
        ("a.tif", np.uint16, True, True),
        ("a.tif", np.uint16, False, False),
        ("a.bmp", np.uint8, False, False),
        ("a.webp", np.uint8, True, False),
    ],
)
def test_icc_profile(tmp_path, name, dtype, grey, kept):
    photo = Photo(make(5, 4, dtype, grey).rgb, None, grey, ICC)
    write_photo(tmp_path / name, photo)
    back = read_photo(tmp_path / name)
    assert back.icc_profile == (ICC if kept else None)
    assert name.endswith("jpg") or (back.rgb == photo.rgb).all()


TRUNCATED = {
    "jpeg": saved(Image.fromarray(noise(60, 50, 3)), "JPEG"),
    "progressive": saved(Image.fromarray(noise(60, 50, 3)), "JPEG", progressive=True),
    "webp": saved(Image.fromarray(noise(60, 50, 3)), "WEBP"),
    "bmp": saved(Image.fromarray(noise(60, 50, 3)), "BMP"),
    "png8": saved(Image.fromarray(noise(60, 50, 3)), "PNG"),
    "png16": png(noise(60, 50, 3, dtype=np.uint16), 2),
    "tiff16": tiff(noise(60, 50, 3, dtype=np.uint16), 2),
    "lzw": saved(Image.fromarray(noise(60, 50, 3)), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_file_is_an_error(tmp_path, kind):
    data = TRUNCATED[kind]
    whole = read(tmp_path, data).rgb
    for end in [*range(1, len(data), len(data) // 40), *range(len(data) - 30, len(data))]:
        try:
            cut = read(tmp_path, data[:end]).rgb
        except ImageError as error:
            check_message(error, str(tmp_path / "photo"))
        else:  # what follows the last pixel (checksums, padding) may be missing
            assert len(data) - end <= 20
            np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"Just text, and nothing else.\n" * 9, "supported"),
        (saved(Image.fromarray(MASK), "PPM"), "supported"),
        (tiff(noise(6, 5, 1).astype(np.float32), 1, t339=3), "F is not supported"),
        (tiff(noise(6, 5, 1, dtype=np.int16), 1, t339=2), "I is not supported"),
        (tiff(DEEP[..., :2].copy(), 1, t338=2), "supported"),
        (tiff(DEEP, 2, t338=1), "premultiplied"),
        (tiff(DEEP[..., :3], 2, t284=2), "planar"),
        (tiff(DEEP, 5), "CMYK is not supported"),
        (saved(Image.new("LAB", (4, 4)), "TIFF"), "LAB is not supported"),
    ],
)
def test_what_is_no_supported_picture(tmp_path, data, word):
    with fails(tmp_path / "photo", word, "copy it again"):
        read(tmp_path, data)


def test_size_limit_is_200_megapixels_and_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    small = saved(Image.new("L", (4, 4)), "BMP")
    for width, word in (
        (20_001, "200 million pixels: make it"),
        (20_000, "truncated"),
    ):
        size = np.array([width, 10_000], "<i4").tobytes()
        with fails(word):
            read(tmp_path, small[:18] + size + small[26:])
    assert Image.MAX_IMAGE_PIXELS == 1234


def test_missing_and_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, word in (("none.png", "No such file"), ("", "not a file"), ("pipe", "not a file")):
        with fails(tmp_path / name, word):
            read_photo(tmp_path / name)


@contextlib.contextmanager
def no_permission(path: Path) -> Iterator[None]:
    """Nobody but root may use `path`, and we are not root."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


def test_no_permission(tmp_path):
    folder = tmp_path / "closed"
    write_photo(folder / "a.png", make(5, 4))
    for use in (
        lambda: read_photo(folder / "a.png"),
        lambda: write_photo(folder / "b.png", make(5, 4)),
        lambda: find_photos([folder]),
        lambda: output_paths([(folder / "a.png", Path("a.png"))], folder / "out"),
    ):
        with no_permission(folder), fails(folder, "Permission denied"):
            use()
    assert [path.name for path in folder.iterdir()] == ["a.png"]


@contextlib.contextmanager
def file_size_limit(folder: Path) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("full", [file_size_limit, small_disk])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full, suffix):
    small, target = make(5, 4), tmp_path / f"a{suffix}"
    with full(tmp_path):
        write_photo(target, small)
        before = target.read_bytes()
        for name in (target.name, f"new{suffix}"):
            with fails(tmp_path / name, "No space" if full is small_disk else "large"):
                write_photo(tmp_path / name, make(90, 99))
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == before


def test_target_that_cannot_be(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, word in (("folder.png", "directory"), ("file/a.png", "exists")):
        with fails(tmp_path / name.removesuffix("/a.png"), word):
            write_photo(tmp_path / name, make(5, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("name", "photo", "word"),
    [
        ("a.jpg", make(5, 4, np.uint16), "16 bits"),
        ("a.webp", make(5, 4, np.uint16), "16 bits"),
        ("a.bmp", make(5, 4, np.uint16), "16 bits"),
        ("a.jpeg", make(5, 4, alpha=True), "transparency"),
        ("a.bmp", make(5, 4, alpha=True), "transparency"),
        ("a.gif", make(5, 4), "suffix"),
        ("a.webp", make(1, 20_000), "limit"),
        ("a.jpg", make(1, 70_000), "writing"),
    ],
)
def test_format_that_cannot_hold_it(tmp_path, name, photo, word):
    with fails(name, word):
        write_photo(tmp_path / "made" / name, photo)
    assert list(tmp_path.iterdir()) == []


def test_written_file_is_as_readable_as_any_other(tmp_path):
    write_photo(tmp_path / "a.png", make(5, 4))
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_find_photos(tmp_path):
    touch(tmp_path, "in/b/2.TIFF", "in/b/1.jpeg", "in/a.PNG", "in/é.webp", "in/note.txt", "raw.dat")
    touch(tmp_path, "in/.hidden.png", "in/.cache/c.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    found = find_photos([tmp_path / "raw.dat", tmp_path / "in", tmp_path / "in"])
    relative = ["a.PNG", "b/1.jpeg", "b/2.TIFF", "é.webp"]
    assert found == [
        (tmp_path / "raw.dat", Path("raw.dat")),
        *((tmp_path / "in" / name, Path(name)) for name in relative),
    ]
    assert output_paths(found, tmp_path / "out")[1:3] == [
        (tmp_path / "in/a.PNG", tmp_path / "out/a.png"),
        (tmp_path / "in/b/1.jpeg", tmp_path / "out/b/1.png"),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_found_and_read(tmp_path, suffix):
    grey = np.tile(np.linspace(20, 220, 32).astype(np.uint8), (24, 1))
    kind = Image.registered_extensions()[suffix]
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / f"a{suffix.upper()}", kind)
    ((path, _),) = find_photos([tmp_path])
    rgb = read_photo(path).rgb
    assert rgb.shape == (24, 32, 3)
    assert np.abs(rgb[..., 0].astype(int) - grey).max() < 12


def test_what_is_written_is_read():
    assert set(WRITTEN) < set(SUFFIXES)


def test_other_files_are_named_with_their_number(tmp_path):
    touch(tmp_path, "in/a.png", "in/b.DNG", "in/deep/c.dng", "in/d.heic", "in/README", "in/.x")
    touch(tmp_path, *(f"in/{n}.txt" for n in range(5)), "only/a.dng")
    told = []
    assert len(find_photos([tmp_path / "in"], tell=told.append)) == 1
    assert told == [
        f"{tmp_path / 'in'}: not read as pictures: 2 .dng (b.DNG, c.dng), 1 .heic (d.heic), "
        "5 .txt (0.txt, 1.txt, 2.txt, ...), 1 without a suffix (README)"
    ]
    with fails(tmp_path / "only", "no photograph in this folder, but 1 .dng (a.dng)"):
        find_photos([tmp_path / "only"])


def test_nothing_to_find(tmp_path):
    touch(tmp_path, "in/note.txt")
    for name, word in (("in", "no photograph"), ("gone", "No such file")):
        with fails(tmp_path / name, word):
            find_photos([tmp_path / name])


def test_missing_files_do_not_hide_the_others(tmp_path):
    touch(tmp_path, "in/a.png")
    (tmp_path / "in/b.png").symlink_to("nowhere")
    found = find_photos([tmp_path / "gone.png", tmp_path / "in"])
    assert [str(relative) for _, relative in found] == ["gone.png", "a.png", "b.png"]
    targets = [target.name for _, target in output_paths(found, tmp_path / "out")]
    assert targets == ["gone.png", "a.png", "b.png"]


def test_the_folder_to_skip_is_skipped_inside_another_one(tmp_path):
    touch(tmp_path, "in/a.png", "in/out/a.png", "in/b/out/a.png")
    found = find_photos([tmp_path / "in"], skip=tmp_path / "in/b/../out")
    assert [str(relative) for _, relative in found] == ["a.png", "b/out/a.png"]
    assert find_photos([tmp_path / "in/out"], skip=tmp_path / "in/out")


def test_two_sources_never_share_a_target(tmp_path):
    touch(tmp_path, "in/b/c.png", "in/d/c.png")
    (tmp_path / "out").mkdir()
    for name in "bd":
        (tmp_path / "out" / name).symlink_to(tmp_path)
    with pytest.raises(ImageError, match=r"c\.png and .*c\.png"):
        output_paths(find_photos([tmp_path / "in"]), tmp_path / "out")


@pytest.mark.parametrize("link", ["same", "folder", "symlink", "hard"])
def test_inputs_are_never_overwritten(tmp_path, link):
    touch(tmp_path, "in/a.jpg", "in/b.png")
    out = tmp_path / ("in" if link == "same" else "out")
    if link == "folder":
        out.symlink_to(tmp_path / "in")
    out.mkdir(exist_ok=True)
    if link == "symlink":
        (out / "a.png").symlink_to(tmp_path / "in/b.png")
    elif link == "hard":
        (out / "a.png").hardlink_to(tmp_path / "in/b.png")
    with fails("overwrite", "b.png"):
        output_paths(find_photos([tmp_path / "in"]), out)


def test_unknown_output_suffix(tmp_path):
    with pytest.raises(ImageError, match=r"\.gif"):
        output_paths([], tmp_path, ".gif")
