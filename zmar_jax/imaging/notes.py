"""What a file says of its picture beside the pixels: when, by which camera, how large, in which
colours. Only what is still true of a restored picture."""

import contextlib
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin

ORIENTATION = 274
_SIZE_LIMIT = 1000
"""Of one value, numbers or bytes: a JPEG has room for 64 KiB in all."""
_KEPT = (270, 271, 272, 306, 315, 33432)
"""Description, make, model, date, artist, copyright."""
_KEPT_EXIF = {
    *(33434, 33437, 34850, 34855),  # exposure time, aperture, program, ISO
    *range(34864, 34870),  # sensitivities
    *(36864, 36867, 36868, *range(36880, 36883)),  # version, dates, time zones
    *range(37377, 37387),  # speed, aperture, brightness, bias, distance, metering, light, flash
    *(37520, 37521, 37522, 40961),  # fractions of seconds, sRGB or not
    *range(41985, 41997),  # rendering, exposure mode, white balance, zoom, scene
    *(42034, 42035, 42036, 42240),  # lens, gamma
}
"""Not the camera's serial number and owner, nor its maker's own note, which may hold both."""
_COLOUR_CHUNKS = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
"""Not cLLI and mDCV: how bright the picture is, and the display that it was mastered on."""


@dataclass(frozen=True)
class Notes:
    """exif: with `Exif\\0\\0` before it and orientation 1, or None. dpi: across and down, or None.

    colours: chunks of a PNG that say what its numbers mean, (name, data).
    """

    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    colours: tuple[tuple[bytes, bytes], ...] = ()


NO_NOTES = Notes()


def read_notes(image: Image.Image, file: BinaryIO, gps: bool) -> Notes:
    """The notes of an image that is loaded from the file; gps: also where it was taken."""
    exif, turned = None, False
    # Broken EXIF is common, and no reason to refuse a whole picture.
    with contextlib.suppress(Exception):
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        exif = _kept(image.getexif(), gps)
    dpi = _dpi(image.info.get("dpi"))
    colours = tuple(_colour_chunks(file)) if image.format == "PNG" else ()
    if dpi and turned:
        dpi = dpi[1], dpi[0]
    return Notes(exif, dpi, colours)


def png_chunks(notes: Notes, profile: bytes | None) -> bytes:
    """The notes and an ICC profile, as what follows the first chunk of a PNG."""
    out = io.BytesIO()
    if profile:
        PngImagePlugin.putchunk(out, b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    for name, data in notes.colours:
        PngImagePlugin.putchunk(out, name, data)
    if notes.dpi:
        per_metre = [round(dots / 0.0254) for dots in notes.dpi]
        data = b"".join(dots.to_bytes(4, "big") for dots in per_metre)
        PngImagePlugin.putchunk(out, b"pHYs", data + b"\1")
    if notes.exif:
        PngImagePlugin.putchunk(out, b"eXIf", notes.exif[6:])
    return out.getvalue()


def plain(exif: bytes) -> Image.Exif:
    """EXIF without the parts that Pillow cannot write into a compressed TIFF: how it was shot, and
    where."""
    out = Image.Exif()
    out.load(exif)
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        out.pop(part, None)
    return out


def _kept(old: Image.Exif, gps: bool) -> bytes | None:
    new = Image.Exif()
    for tag in _KEPT:
        if _fits(old.get(tag)):
            new[tag] = _text(old[tag])
    parts = {ExifTags.IFD.Exif: _KEPT_EXIF} | ({ExifTags.IFD.GPSInfo: range(32)} if gps else {})
    for part, tags in parts.items():
        found = {tag: value for tag, value in old.get_ifd(part).items() if tag in tags}
        if kept := {tag: value for tag, value in found.items() if _fits(value)}:
            new[part] = kept
    if not len(new):
        return None
    new[ORIENTATION] = 1
    return new.tobytes()


def _fits(value: Any) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) <= _SIZE_LIMIT)


def _text(value: Any) -> Any:
    """Pillow reads any text as Latin-1, and would write question marks for what is not ASCII."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _dpi(found: Any) -> tuple[float, float] | None:
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        across, down = map(float, found)
        if all(math.isfinite(dots) and 1 <= dots <= 1e5 for dots in (across, down)):
            return across, down
    return None


def _colour_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of those before the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        length = int.from_bytes(head[:4], "big")
        if head[4:] in _COLOUR_CHUNKS and length <= _SIZE_LIMIT:
            yield head[4:], file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)  # its checksum, too
