"""Files that hold something else than one picture: raw data of a camera, or several pictures."""

from pathlib import Path

from PIL import Image

RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc"),
    *(".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl"),
    *(".sr2", ".srf", ".srw", ".x3f"),
)
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
"""Of Fujifilm, Olympus, Panasonic, Sigma and Minolta."""
_SUBFILE, _SUB_IFDS, _DNG = 254, 330, 50706  # TIFF tags
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE

Problem = tuple[str, str]
"""What a file holds, and what to do."""


def raw_data(path: Path, header: bytes) -> Problem | None:
    """What is wrong with a file by its name or first 26 bytes; None where nothing is."""
    canon = header[8:11] == b"CR\x02" or header[4:12] == b"ftypcrx "
    if path.suffix.lower() in RAW_SUFFIXES or header.startswith(_RAW_STARTS) or canon:
        return _RAW
    return None


def not_one_picture(image: Image.Image) -> Problem | None:
    """What is wrong with an opened file that holds no picture of its own, or several.

    Smaller copies and masks in a TIFF, and what a phone puts behind its JPEG, as a depth map, are
    no pictures of their own. The image is at its first frame, also after it.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        if _DNG in tags or (tags.get(_SUBFILE, 0) & _REDUCED and _SUB_IFDS in tags):
            return _RAW
    count = _pictures(image)
    if count > 1:
        return f"holds {count} pictures", "save the one you mean as a file of its own"
    return None


_RAW = (
    "raw data of a camera, no picture yet",
    "develop it first, as darktable and RawTherapee do, to a 16-bit TIFF or PNG",
)


def _pictures(image: Image.Image) -> int:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format != "TIFF" or frames == 1:
        return frames
    count = 0
    for frame in range(frames):
        image.seek(frame)
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        count += not tags.get(_SUBFILE, 0) & (_REDUCED | _MASK)
    image.seek(0)
    return count
