"""The edge between files and arrays: read photographs, write them whole, find them in folders."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError, features

from zmar_jax.files.replacing import whole_file
from zmar_jax.imaging import contents
from zmar_jax.imaging.errors import ImageError as ImageError
from zmar_jax.imaging.errors import image_error, image_errors
from zmar_jax.imaging.notes import NO_NOTES, ORIENTATION, Notes, plain, png_chunks, read_notes

Step = Callable[[Path, Path, Exception | None], None]
"""Told of each picture that is done, as `cli.console.progress` yields it: its two files, the error
if any."""

MAX_PIXELS = 200_000_000
_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    # some builds of Pillow are without
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
"""What is read: names of Pillow's, and the suffixes that such files are found by in folders."""
_READ_ONLY = ("GIF", "AVIF")
SUFFIXES: tuple[str, ...] = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
WRITTEN: dict[str, str] = {
    s: name for name, suffixes in _FORMATS.items() if name not in _READ_ONLY for s in suffixes
}
"""The format of each suffix that is written."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    # Without `exact` the colour under fully transparent pixels is thrown away.
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {"compression": "tiff_lzw"},
}
_SHALLOW = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_DEEP = {"I;16", "I;16B", "RGB", "RGBA"}
_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA = 258, 262, 284, 338  # TIFF tags
_READING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph in memory, upright (its EXIF orientation already applied).

    rgb: uint8 or uint16 [H, W, 3], full range (0..255 or 0..65535).
    alpha: [H, W] of the same dtype, not premultiplied, or None.
    grey: the source was greyscale; `write_photo` then writes greyscale again.
    icc_profile: the embedded colour profile of `rgb`, or None.
    notes: what else the file says of it, and stays true of a restored picture.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc_profile: bytes | None = None
    notes: Notes = NO_NOTES

    def with_rgb(self, rgb: np.ndarray) -> "Photo":
        """This photograph with other pixels; ValueError unless shape and dtype are the same."""
        if rgb.shape != self.rgb.shape or rgb.dtype != self.rgb.dtype:
            raise ValueError(f"{rgb.dtype} {rgb.shape} for {self.rgb.dtype} {self.rgb.shape}")
        return replace(self, rgb=rgb)


def read_photo(path: str | os.PathLike[str], gps: bool = False) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file, whatever its suffix.

    16-bit PNG and TIFF give uint16, all else uint8. EXIF orientation is applied; palettes become
    RGB, any transparency becomes `alpha`, CMYK becomes RGB (dropping its profile). Where it was
    taken is left out of the notes unless `gps` asks for it.

    Raises ImageError for a file that is missing, unreadable, empty, not a picture, damaged or cut
    short, over 200 megapixels, of several pictures (pages or frames), raw data of a camera, or of
    an unsupported kind (float, 12- or 32-bit, signed, Lab; of 16-bit TIFF: CMYK, grey + alpha,
    planar, premultiplied). Threads take turns, as Pillow's size limit and Python's warning filters
    belong to the process; both are put back.
    """
    path = Path(path)
    # Hostile bytes make decoders raise nearly any exception.
    with image_errors(path, "read", (Exception,), "copy it again, or convert it to a PNG"):
        status = path.stat()
        # Opening a pipe or a device could block for ever.
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if not status.st_size:
            raise ValueError("the file is empty")
        with path.open("rb") as file:
            return _read(path, file, gps)


def decode_photo(data: bytes, name: Path) -> Photo:
    """As `read_photo`, of the bytes of a file, which messages call `name`."""
    with image_errors(name, "read", (Exception,), "copy it again, or convert it to a PNG"):
        if not data:
            raise ValueError("the file is empty")
        return _read(name, io.BytesIO(data), gps=False)


def write_photo(path: str | os.PathLike[str], photo: Photo) -> None:
    """Write `photo` in the format that the suffix of `path` names, whole or not at all.

    PNG, WebP, TIFF and BMP are lossless; JPEG is quality 95, 4:4:4. uint16 goes only to PNG and
    TIFF, alpha only to PNG, WebP and TIFF. A grey photo becomes the Rec.601 luminance of its rgb:
    one channel, or equal ones where there is no grey (WebP; 16-bit with alpha). The ICC profile is
    kept, except in BMP, 16-bit colour TIFF and grey that has to be written as colour. So are the
    notes, as far as the format has room: a PNG has for all, a TIFF for camera, author and dpi, a
    16-bit colour TIFF for none.

    Makes parent folders and replaces an existing file. Raises ImageError for what the format
    cannot hold and when writing fails; then no partial or temporary file is left.
    """
    path = Path(path)
    check_format(path, photo)
    with image_errors(path, "written", (ValueError, cv2.error), "write a .png instead"):
        data = _encode(photo, WRITTEN[path.suffix.lower()])
    with image_errors(path.parent, "made"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with image_errors(path, "written"), whole_file(path) as file:
        file.write(data)


def check_format(path: Path, photo: Photo) -> None:
    """Raises ImageError where the format that the suffix of `path` names cannot hold the photo."""
    name = WRITTEN.get(path.suffix.lower())
    problem = None
    if name is None:
        problem = f"its suffix is none of {' '.join(WRITTEN)}"
    elif photo.rgb.dtype == np.uint16 and name not in ("PNG", "TIFF"):
        problem = "16 bits fit only PNG and TIFF"
    elif photo.alpha is not None and name not in ("PNG", "WEBP", "TIFF"):
        problem = "transparency fits only PNG, WebP and TIFF"
    if problem:
        raise image_error(path, f"cannot be written ({problem})", "write a .png instead")


def size_text(size: Sequence[int]) -> str:
    """`WIDTHxHEIGHT`, for messages, of (height, width) or a shape that begins so."""
    return f"{size[1]}x{size[0]}"


def pad_to_multiple(image: np.ndarray, stride: int) -> np.ndarray:
    """[..., H, W, C], reflected at the bottom and right up to multiples of the model's stride.

    In NumPy, so that only padded sizes are compiled.
    """
    *batch, height, width, _ = image.shape
    padding = [*[(0, 0)] * len(batch), (0, -height % stride), (0, -width % stride), (0, 0)]
    return np.pad(image, padding, mode="reflect")


def find_photos(
    inputs: Sequence[Path],
    skip: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[tuple[Path, Path]]:
    """The photographs that files and folders name: [(path, path relative to its input)].

    A named file is taken whatever its suffix. A folder is searched recursively, in sorted order,
    for SUFFIXES in any case, but not hidden files and folders, links to folders, nor the folder
    `skip` in it. The same find twice is listed once, and so is a file that is missing: reading it
    says so. `tell` is called with one line for each folder that holds files of other suffixes.
    Raises ImageError where no file is there at all and for a folder without photographs.
    """
    found: list[tuple[Path, Path]] = []
    for root in map(Path, inputs):
        if not os.path.isdir(root):
            found.append((root, Path(root.name)))
            continue
        with image_errors(root, "read"):
            files = list(_files_under(root, os.path.realpath(skip) if skip else None))
        photos = [file for file in files if file.suffix.lower() in SUFFIXES]
        others = _by_suffix([file for file in files if file.suffix.lower() not in SUFFIXES])
        if not photos:
            holds = f", but {others}" if others else ""
            advice = f"it needs {' '.join(SUFFIXES)}"
            raise image_error(root, f"no photograph in this folder{holds}", advice)
        if others:
            tell(f"{root}: not read as pictures: {others}")
        found += [(photo, photo.relative_to(root)) for photo in photos]
    if found and not any(os.path.exists(path) for path, _ in found):
        with image_errors(found[0][0], "read"):
            found[0][0].stat()
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _pillow_reading() -> Iterator[None]:
    """Our size limit and no warnings, for one reader at a time, then the caller's settings."""
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, level = Image.MAX_IMAGE_PIXELS, cv2.utils.logging.getLogLevel()
        # Pillow only warns up to twice its limit, and raises beyond.
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
        # OpenCV tells stderr about every private tag of a TIFF.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            cv2.utils.logging.setLogLevel(level)


def _read(path: Path, file: BinaryIO, gps: bool) -> Photo:
    with _pillow_reading():
        try:
            return _decode(path, file, gps)
        except Image.DecompressionBombError as e:
            reason = f"has more than {MAX_PIXELS // 10**6} million pixels"
            raise image_error(path, reason, "make it smaller") from e


def _decode(path: Path, file: BinaryIO, gps: bool) -> Photo:
    header = file.read(26)
    if problem := contents.raw_data(path, header):
        raise image_error(path, *problem)
    with _opened(file) as image:
        if problem := contents.not_one_picture(image):
            raise image_error(path, *problem)
        image.load()
        depth, colour = header[24:] if image.format == "PNG" else (8, None)
        depth = max(getattr(image, "tag_v2", {}).get(_BITS, (depth,)))
        if image.mode not in (_DEEP if depth == 16 else _SHALLOW if depth <= 8 else ()):
            raise ValueError(f"{depth}-bit {image.mode} is not supported")
        if depth == 16:
            pixels = _deep_pixels(image, file)
        else:
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        pixels = _upright(pixels, image)  # not a TIFF: both libraries have turned that already
        notes = read_notes(image, file, gps)
    return Photo(
        rgb=np.array(pixels[..., :3], order="C"),
        alpha=np.array(pixels[..., 3], order="C") if pixels.shape[2] == 4 else None,
        # To Pillow a 16-bit grey + alpha PNG (colour type 4) is RGBA.
        grey=image.mode in ("1", "L", "LA", "I;16", "I;16B") or colour == 4,
        icc_profile=None if image.mode == "CMYK" else image.info.get("icc_profile") or None,
        notes=notes,
    )


def _opened(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=list(_FORMATS))
    except UnidentifiedImageError as e:
        kinds = "/".join(_FORMATS)
        raise ValueError(f"no {kinds} of a supported kind, or a damaged one") from e


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    orientation = 1
    # Broken EXIF is common, and no reason to refuse a whole picture.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ORIENTATION)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::down, ::right]


def _deep_pixels(image: Image.Image, file: BinaryIO) -> np.ndarray:
    """uint16 [H, W, 3 or 4] of a 16-bit picture; of its colour, Pillow itself keeps 8 bits."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        channels = [65535 - grey if tags.get(_PHOTOMETRIC) == 0 else grey] * 3
        if "transparency" in image.info:
            channels.append((grey != image.info["transparency"]) * np.uint16(65535))
        return np.dstack(channels)
    # OpenCV returns both as if they were neither.
    if tags.get(_PLANAR) == 2 or 1 in tags.get(_EXTRA, ()):
        raise ValueError("planar or premultiplied 16-bit TIFF is not supported")
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[1::-1] != image.size:
        raise ValueError("OpenCV cannot decode it at 16 bits")
    return pixels[..., [2, 1, 0, 3] if image.has_transparency_data else [2, 1, 0]]


def _encode(photo: Photo, name: str) -> bytes:
    pixels = cv2.cvtColor(photo.rgb, cv2.COLOR_RGB2GRAY) if photo.grey else photo.rgb
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    deep_colour = pixels.dtype == np.uint16 and pixels.ndim == 3
    # The profile of a grey source describes one channel.
    profile = None if photo.grey and (deep_colour or name == "WEBP") else photo.icc_profile
    if deep_colour:
        data = _encode_deep(pixels, name)
    else:
        data = _encode_shallow(pixels, name, profile, photo.notes)
    if name == "PNG":
        chunks = png_chunks(photo.notes, profile)
        data = data[:33] + chunks + data[33:]  # they follow the IHDR chunk
    return data


def _encode_shallow(pixels: np.ndarray, name: str, profile: bytes | None, notes: Notes) -> bytes:
    options = dict(_OPTIONS.get(name, {}))
    exif = plain(notes.exif) if notes.exif and name == "TIFF" else notes.exif
    if name != "PNG":  # whose chunks `_encode` adds, at any depth
        options |= {"icc_profile": profile, "exif": exif, "dpi": notes.dpi}
    buffer = io.BytesIO()
    present = {option: value for option, value in options.items() if value is not None}
    Image.fromarray(pixels).save(buffer, name, **present)
    return buffer.getvalue()


def _encode_deep(pixels: np.ndarray, name: str) -> bytes:
    """uint16 [H, W, 2..4] (grey + alpha, RGB, RGBA) as a PNG or TIFF, which Pillow cannot write."""
    order = {2: (0, 0, 0, 1), 3: (2, 1, 0), 4: (2, 1, 0, 3)}[pixels.shape[2]]
    done, data = cv2.imencode(f".{name.lower()}", np.ascontiguousarray(pixels[..., order]))
    if not done:
        raise ValueError("OpenCV refused it")
    return data.tobytes()


def _files_under(folder: Path, skip: str | None) -> Iterator[Path]:
    # Path.rglob would silently pass over folders that it may not read.
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            if os.path.realpath(path) != skip:
                yield from _files_under(path, skip)
        elif not path.is_dir():
            yield path


def _by_suffix(files: Sequence[Path]) -> str:
    """`2 .dng (a.dng, b.dng), 1 without a suffix (README)`; of many of a suffix the first three."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.suffix.lower() or "without a suffix", []).append(file.name)
    return ", ".join(
        f"{len(found)} {suffix} ({', '.join(found[:3])}{', ...' * (len(found) > 3)})"
        for suffix, found in sorted(names.items())
    )
