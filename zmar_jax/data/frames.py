"""One picture of a benchmark: PNG files and npy frames, read strictly."""

from pathlib import Path

import cv2
import numpy as np

from zmar_jax.data.errors import DataError
from zmar_jax.imaging.images import read_photo

NPY_SIZE = (512, 960)
"""Height and width to which npy frames are resized; metrics are computed at this size."""
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_size(path: Path, is_gt: bool) -> tuple[int, int]:
    """Height and width of a picture that can be used: an RGB PNG of 8 bits, or an npy frame.

    Raises DataError or ImageError for one that cannot; all of it is read.
    """
    if path.suffix.lower() == ".npy":
        return read_npy(path, is_gt).shape[:2]
    photo = read_photo(path)
    with path.open("rb") as file:
        if file.read(len(_PNG)) != _PNG:
            raise DataError(f"{path}: is not a PNG, whatever its name says")
    channels = (1 if photo.grey else 3) + (photo.alpha is not None)
    if channels != 3:
        raise DataError(f"{path}: expected 3 channels, got {channels}")
    if photo.rgb.dtype != np.uint8:
        raise DataError(f"{path}: expected dtype uint8, got {photo.rgb.dtype}")
    return photo.rgb.shape[:2]


def read_npy(path: Path, is_gt: bool = False) -> np.ndarray:
    """A frame as the benchmarks store it: [H, W, 3], BGR, uint8 or float 0-255 (memory-mapped).

    Raises DataError: unreadable, another shape or dtype, not finite, or far from 0-255. A ground
    truth that ends at 1 is on another scale; a low image may be as dark as that.
    """
    try:
        frame = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # damaged headers raise nearly anything
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        shape = getattr(frame, "shape", "an archive")
        raise DataError(f"{path}: expected 3 channels, [H, W, 3], got {shape}")
    if not frame.size:
        raise DataError(f"{path}: is empty, {frame.shape}")
    if frame.dtype != np.uint8 and frame.dtype.kind != "f":
        raise DataError(f"{path}: expected dtype uint8 or float, got {frame.dtype}")
    low, high = float(frame.min()), float(frame.max())
    # Resampling overshoots 0-255 a little; only another scale is an error. NaN fails, too.
    if not (low >= -255 and high <= 510) or (is_gt and frame.dtype != np.uint8 and high <= 1):
        raise DataError(f"{path}: expected values 0-255, got {low:g} to {high:g}")
    return frame


def npy_to_png(path: Path, is_gt: bool) -> bytes:
    """An npy frame, resized, as a PNG; DataError as `read_npy`."""
    done, png = cv2.imencode(".png", resize_frame(read_npy(path, is_gt)))
    if not done:
        raise DataError(f"{path}: cannot be encoded as a PNG")
    return png.tobytes()


def resize_frame(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3], 0-255 -> uint8 [512, 960, 3]: bilinear, half-pixel centres, no antialiasing."""
    frame = np.asarray(frame, np.float32)
    resized = cv2.resize(frame, NPY_SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def decode_plain(file: bytes) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of the bytes of a PNG or JPEG; its EXIF is ignored.

    In half of the time of `read_photo`, which gives the same of most photographs and of all that
    `picture_size` accepts. DataError where OpenCV cannot decode it.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), flags)
    if pixels is None:
        raise DataError("OpenCV cannot decode it")
    return pixels
