"""The pictures that visitors have dropped: files in one folder, of which the newest are kept."""

import dataclasses
import re
import secrets
import shutil
import threading
from pathlib import Path, PurePosixPath

import numpy as np

from zmar_jax.data.masks import read_mask
from zmar_jax.data.sample import TITLE, sample
from zmar_jax.demo.errors import DemoError, gone
from zmar_jax.imaging.images import ImageError, Photo, read_photo, size_text, write_photo
from zmar_jax.imaging.outputs import bare_name

KEPT = 12
"""So many pictures are kept; an older one is forgotten with its results."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture in a folder of its own, where its mask and results lie, too."""

    id: str
    name: str
    folder: Path
    height: int
    width: int

    @property
    def source(self) -> Path:
        """The file as it came."""
        return self.folder / f"source{PurePosixPath(self.name).suffix}"

    @property
    def shown(self) -> Path:
        """What browsers can show of it: 8 bits, upright."""
        return self.folder / "before.png"

    @property
    def mask(self) -> Path:
        """What was painted; not there where nothing was."""
        return self.folder / "mask.png"

    @property
    def download_name(self) -> str:
        """`night.jpg` is restored as `night.png`."""
        return f"{bare_name(Path(self.name))}.png"


def safe_name(name: str) -> str:
    """The last part of a name that a browser gave, without what no file should be called."""
    last = re.split(r"[\\/]", name)[-1]
    kept = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "", last).strip().lstrip(".")
    path = PurePosixPath(kept)
    suffix = path.suffix if len(path.suffix) <= 6 else ""
    return (kept[: len(kept) - len(suffix)][:100] or "picture") + suffix


class Pictures:
    """Adds and finds pictures; may be used by several threads.

    Args:
      folder: an empty one, which is only for them.
      kept: how many are kept.
    """

    def __init__(self, folder: Path, kept: int = KEPT):
        self.folder: Path = folder
        self.kept: int = kept
        self._pictures: dict[str, Picture] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # many pictures at once would not fit into memory

    def place(self) -> Path:
        """A new folder for one upload."""
        folder = self.folder / secrets.token_urlsafe(9)
        folder.mkdir()
        return folder

    def add(self, name: str, upload: Path) -> Picture:
        """A picture of the file `upload`, which lies in a `place` and is moved.

        Raises:
          ImageError: it cannot be read; the message calls it `name`. The place is removed.
        """
        folder, name = upload.parent, safe_name(name)
        source = upload.rename(folder / f"source{PurePosixPath(name).suffix}")
        try:
            with self._reading:
                return self._keep(name, folder, read_photo(source))
        except ImageError as e:
            shutil.rmtree(folder)
            raise ImageError(str(e).replace(str(source), name)) from e

    def add_sample(self) -> Picture:
        """The photograph that comes with the package, at night and with lost pixels."""
        folder = self.place()
        photo = Photo(sample()[0])
        write_photo(folder / "source.png", photo)
        return self._keep(f"{TITLE}.png", folder, photo)

    def get(self, id_: str) -> Picture:
        with self._lock:
            if id_ not in self._pictures:
                raise gone("picture")
            return self._pictures[id_]

    def set_mask(self, picture: Picture, upload: Path) -> float:
        """Keeps a painted mask, an image that is white where pixels are lost; returns their share.

        Raises:
          ImageError, DataError: no such image; DemoError: another size.
        """
        try:
            lost = read_mask(upload)
        except ValueError as e:
            raise DemoError(str(e).replace(str(upload), "the painted mask")) from e
        if lost.shape != (picture.height, picture.width):
            size = size_text((picture.height, picture.width))
            raise DemoError(f"a mask of {size_text(lost.shape)} for a picture of {size}")
        upload.replace(picture.mask)
        return float(lost.mean())

    def _keep(self, name: str, folder: Path, photo: Photo) -> Picture:
        height, width = photo.rgb.shape[:2]
        picture = Picture(folder.name, name, folder, height, width)
        write_photo(picture.shown, _eight_bits(photo))
        with self._lock:
            self._pictures[picture.id] = picture
            old = list(self._pictures.values())[: -self.kept]
            for other in old:
                del self._pictures[other.id]
        for other in old:
            shutil.rmtree(other.folder, ignore_errors=True)
        return picture


def _eight_bits(photo: Photo) -> Photo:
    if photo.rgb.dtype == np.uint8:
        return photo
    alpha = None if photo.alpha is None else (photo.alpha >> 8).astype(np.uint8)
    return dataclasses.replace(photo, rgb=(photo.rgb >> 8).astype(np.uint8), alpha=alpha)
