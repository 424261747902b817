"""The file of an exported restorer: a ZIP archive, nothing compressed.

```
about.json                    `About`
weights/NAME.npy              the arrays that every program takes, by name
programs/PLATFORM/SIZE/encode a serialized `jax.export.Exported`; SIZE is HEIGHTxWIDTH or dynamic
programs/PLATFORM/SIZE/decode
```

A program takes {name: array} of all weights first. `encode` takes a picture, float32
[1, H, W, 3] in [0, 1], then, and returns features; `decode` takes a latent, float32
[1, H/stride, W/stride, latent_channels], and those, and returns pixels in [0, 1], [1, H, W, 3].
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.files.errors import brief, errors_as
from zmar_jax.files.replacing import whole_file

FORMAT = 1
DYNAMIC = "dynamic"
PARTS = ("encode", "decode")


class ExportError(ValueError):
    """An exported restorer that cannot be written, read or run; one line that says what to do."""


def need_flatbuffers(path: Path) -> None:
    """Raises ExportError where what jax.export writes and reads programs with is missing."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ExportError(f"{path}: needs flatbuffers: pip install 'zmar-jax[export]'")


@dataclasses.dataclass(frozen=True)
class About:
    """What a loader has to know of the model."""

    stride: int
    smallest: int
    latent_channels: int
    brightness: float
    """`ModelConfig.brightness`: how bright the model wants to see pictures; 0, as they are."""
    platforms: tuple[str, ...]
    sizes: tuple[str, ...]
    checksum: str
    """Of the weights, as `zmar-jax info` prints it."""
    version: str
    """Of zmar_jax, which wrote this."""
    jax: str
    format: int = FORMAT


def write(
    path: Path,
    about: About,
    weights: Mapping[str, np.ndarray],
    programs: Iterable[tuple[str, bytes]],
) -> None:
    """Writes the archive, whole or not at all.

    Args:
      programs: (PLATFORM/SIZE/PART, serialized), made one after the other.

    Raises:
      ExportError: it cannot be written; what was at `path` is still there.
    """
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("about.json", json.dumps(dataclasses.asdict(about), indent=1))
            for name, array in weights.items():
                archive.writestr(f"weights/{name}.npy", _npy(array))
            for name, program in programs:
                archive.writestr(f"programs/{name}", program)
    except OSError as e:
        raise ExportError(f"{path}: cannot be written ({e.strerror}); choose another place") from e


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


class Reader:
    """An archive, open for reading.

    Raises:
      ExportError: it is missing, damaged, or of another format.
    """

    def __init__(self, path: Path):
        self.path = path
        with _readable(path):
            self._zip = zipfile.ZipFile(path)
            said: dict[str, Any] = json.loads(self._zip.read("about.json"))
            if said.get("format") != FORMAT:
                raise ExportError(
                    f"{path}: is of format {said.get('format')}, and this version reads {FORMAT}; "
                    "export the weights again"
                )
            lists = {name: tuple(said[name]) for name in ("platforms", "sizes")}
            self.about: About = About(**{**said, **lists})

    def weights(self) -> dict[str, np.ndarray]:
        """All arrays, by name."""
        names = [n for n in self._zip.namelist() if n.startswith("weights/")]
        with _readable(self.path):
            arrays = {n: io.BytesIO(self._zip.read(n)) for n in names}
            return {
                n.removeprefix("weights/").removesuffix(".npy"): np.lib.format.read_array(
                    file, allow_pickle=False
                )
                for n, file in arrays.items()
            }

    def program(self, platform: str, size: str, part: str) -> bytearray:
        """The serialized program; its bytes are checked against the archive's checksum."""
        with _readable(self.path):
            return bytearray(self._zip.read(f"programs/{platform}/{size}/{part}"))


def _readable(path: Path) -> contextlib.AbstractContextManager[None]:
    """Errors of a damaged archive as `ExportError`."""
    wrong = (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile)
    text = f"{path}: is no exported restorer, or damaged ({{}}); make one with `zmar-jax export`"
    return errors_as(ExportError, lambda e: text.format(brief(e)), wrong)
