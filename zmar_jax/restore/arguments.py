"""What Python callers may give: pictures, masks and numbers in every natural form."""

import math
import numbers
import os
from typing import Any

import numpy as np
from PIL import Image

from zmar_jax.config import ConfigError
from zmar_jax.data.masks import read_mask, white_pixels
from zmar_jax.files.places import local
from zmar_jax.imaging.images import read_photo
from zmar_jax.restore.memory import parse_bytes

EXPECTED = "a uint8 or uint16 image [H, W, 3]"


def picture(image: Any) -> np.ndarray:
    """uint8 or uint16 [H, W, 3] of such an array, a PIL image (as it lies) or the path of a file.

    Raises:
      TypeError: something else; ValueError: another shape or dtype; ImageError: a bad file.
    """
    if isinstance(image, str | os.PathLike):
        return read_photo(local(image)).rgb
    if isinstance(image, Image.Image):
        image = _pixels(image)
    if not hasattr(image, "__array__"):
        raise TypeError(
            f"expected {EXPECTED}, a PIL image or a path, got {type(image).__name__}; of several "
            "pictures restore each, of nested lists np.array(image, np.uint8)"
        )
    array = np.asarray(image)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"expected {EXPECTED}, got {array.dtype} {array.shape}{_advice(array)}")
    return array


def lost_pixels(mask: Any, size: tuple[int, ...]) -> np.ndarray | None:
    """Which pixels are lost, bool [H, W]; None for `auto`, where that is to be found.

    Args:
      mask: `auto`, `none`, an array (nonzero where lost), or a PIL image or the Path of a file
        (white where lost, as `masks.white_pixels` has it).

    Raises:
      ValueError: another word, not of that size (height, width), or no mask; ImageError: a bad
        file.
    """
    if isinstance(mask, str):
        if mask not in ("auto", "none"):
            raise ValueError(f"mask must be auto, none, an array or a pathlib.Path, got {mask!r}")
        return np.zeros(size, bool) if mask == "none" else None
    if isinstance(mask, os.PathLike):
        mask = read_mask(local(mask))
    if isinstance(mask, Image.Image):
        mask = white_pixels(_pixels(mask), "mask")
    if np.shape(mask) != size:
        raise ValueError(f"expected a mask {size}, got {np.shape(mask)}")
    return np.asarray(mask) != 0


def whole(name: str, value: Any, least: int, below: int | None = None) -> int:
    """A whole number in any type, as 2, np.int64(2) or 2.0.

    Raises:
      TypeError: no such number; ConfigError, a ValueError: too small, or too large.
    """
    wanted = f"{name} must be {least} or more" + (f" and below {below}" if below else "")
    if not _is_number(value) or value != math.floor(value):
        raise TypeError(f"{wanted}, a whole number, got {value!r}")
    if value < least or (below is not None and value >= below):
        raise ConfigError(f"{wanted}, got {value}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A number that is 0 or more; TypeError, ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, 0 or more, got {value!r}")
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be 0 or more, got {value}")
    return number


def amount(memory: Any) -> int | None:
    """Bytes, of a number or a text as `16GiB`; None stays None. Raises as `whole`."""
    if memory is None:
        return None
    return parse_bytes(memory) if isinstance(memory, str) else whole("memory", memory, 1)


def _is_number(value: Any) -> bool:
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, -1)
    if image.mode in ("I", "F"):
        raise ValueError(f"expected {EXPECTED}, got a PIL image of mode {image.mode}")
    return np.asarray(image.convert("RGB"))


def _advice(array: np.ndarray) -> str:
    """How to make the picture of an array that is none."""
    if array.ndim == 2:
        return "; of grey np.stack([image] * 3, -1)"
    if array.ndim == 4:
        return "; restore pictures one by one"
    if array.ndim == 3 and array.shape[2] == 4:
        return "; of RGBA image[..., :3]"
    if array.dtype.kind == "f":
        return "; of floats in [0, 1] np.round(255 * image).astype(np.uint8)"
    return ""
