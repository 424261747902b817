"""Running an exported restorer, with JAX, NumPy and flatbuffers; none of the model's code.

The programs hold the network alone. What `restore` does to a picture around it is done here, by the
same code: padding, and for a model with a brightness lost pixels, exposure and what is kept of a
bright picture (`imaging.exposure`), which needs OpenCV.
"""

import functools
import math
import os
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jax import export

from zmar_jax.deploy.archive import DYNAMIC, PARTS, About, ExportError, Reader, need_flatbuffers
from zmar_jax.files.places import local
from zmar_jax.imaging.views import Views, choose_views
from zmar_jax.runtime import compilation

if TYPE_CHECKING:
    from zmar_jax.imaging.exposure import Seen

PLATFORMS = {"gpu": "cuda"}
"""What jax.export calls a backend, where that has another name."""


def load_exported(path: str | os.PathLike[str]) -> "ExportedRestorer":
    """A restorer from a file that `zmar-jax export` wrote.

    ```
    restore = load_exported("restorer.zmar")
    image = restore(uint8_hw3)
    ```

    Raises:
      ExportError: a ValueError; the file is missing, damaged or not for this platform.
    """
    return ExportedRestorer(Reader(local(path)))


class ExportedRestorer:
    """Restores photographs by exported programs; each padded size is compiled once."""

    def __init__(self, reader: Reader):
        need_flatbuffers(reader.path)
        self.about: About = reader.about
        self._reader = reader
        backend = jax.default_backend()
        self.platform: str = PLATFORMS.get(backend, backend)
        if self.platform not in self.about.platforms:
            raise ExportError(
                f"{reader.path}: has programs for {', '.join(self.about.platforms)} and not for "
                f"{self.platform}, which this is; export it with --platforms {self.platform}"
            )
        self._weights = jax.device_put(reader.weights())
        self._programs: dict[str, tuple[Any, ...]] = {}

    def __call__(
        self,
        image: np.ndarray,
        heat: float = 0.0,
        seed: int = 0,
        mask: np.ndarray | Literal["auto", "none"] = "auto",
        brightness: float = 1.0,
        views: Views = "auto",
    ) -> np.ndarray:
        """The restored photograph, as `zmar_jax.load_restorer` gives it.

        Args:
          image: uint8 or uint16 [H, W, 3] RGB.
          heat: standard deviation of the latent, 0 or more; 0 gives the most likely picture.
          seed: of the latent.
          mask: which pixels are lost, [H, W], nonzero where one is; `none`; or `auto`, as for
            `restore`.
          brightness: a factor on the brightness that is chosen.
          views: as for `restore`; 8 needs a program of the turned size, too.

        Returns:
          The same shape and dtype.

        Raises:
          ValueError: another image, a negative heat, a size that the file has no program for
            (`ExportError`), or pixels that are not finite.
        """
        image = _checked(image, self.about.smallest)
        if not 0 <= heat < math.inf:
            raise ValueError(f"heat must be 0 or more, got {heat}")
        if not 0 < brightness < math.inf:
            raise ValueError(f"brightness must be a factor above 0, got {brightness}")
        seen = self._see(image, mask, brightness)
        chosen = choose_views(views, self.about.brightness, heat)
        rng = jax.random.fold_in(jax.random.key(seed), 0)
        restored = sum(
            seen.keep(view.back(self._restored(view.of(seen.image), heat, rng))) for view in chosen
        ) / len(chosen)
        if not np.isfinite(restored).all():
            raise ValueError("restored pixels are not finite; lower the heat, or check the weights")
        return np.round(np.iinfo(image.dtype).max * restored).astype(image.dtype)

    def _restored(self, image: np.ndarray, heat: float, rng: jax.Array) -> np.ndarray:
        """What the programs make of a picture, float64 [H, W, 3], of 1 = white."""
        height, width, _ = image.shape
        stride = self.about.stride
        edges = (0, -height % stride), (0, -width % stride), (0, 0)
        padded = np.pad(image, edges, mode="reflect")
        encode, decode = self._parts(*padded.shape[:2])
        # an IEEE division, as in the model: multiplying by 1/255 differs in the last bit
        unit = padded[None].astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
        features = encode(self._weights, unit)
        rows, columns = (size // stride for size in padded.shape[:2])
        latent = jax.random.normal(rng, (1, rows, columns, self.about.latent_channels))
        pixels = np.asarray(decode(self._weights, heat * latent, features))
        return pixels[0, :height, :width].astype(np.float64)

    def _see(self, image: np.ndarray, mask: Any, factor: float) -> "Seen | _AsItIs":
        """The picture as the model is to see it."""
        lost = None
        if isinstance(mask, str):
            if mask not in ("auto", "none"):
                raise ValueError(f"mask must be auto, none or an array, got {mask!r}")
            lost = np.zeros(image.shape[:2], bool) if mask == "none" else None
        else:
            lost = np.asarray(mask) != 0
            if lost.shape != image.shape[:2]:
                raise ValueError(f"expected a mask {image.shape[:2]}, got {lost.shape}")
        if not self.about.brightness and lost is None and factor == 1:
            return _AsItIs(image)
        try:
            from zmar_jax.imaging.exposure import as_seen
        except ModuleNotFoundError as e:
            raise ExportError(
                f"{self._reader.path}: its model sees pictures exposed, or with a mask or "
                f"brightness of yours, which needs {e.name}: pip install opencv-python-headless"
            ) from e
        return as_seen(image, self.about.brightness, lost, factor)

    def _parts(self, height: int, width: int) -> tuple[Any, ...]:
        """encode and decode for pictures of this size."""
        size = f"{height}x{width}"
        if size not in self.about.sizes:
            if DYNAMIC not in self.about.sizes:
                raise ExportError(
                    f"{self._reader.path}: has programs for {', '.join(self.about.sizes)} (height "
                    f"x width, after padding to multiples of {self.about.stride}), got {size}; "
                    "export it with this --size too, or with --size dynamic"
                )
            size = DYNAMIC
        if size not in self._programs:
            read = functools.partial(self._reader.program, self.platform, size)
            loaded = (export.deserialize(read(part)).call for part in PARTS)
            self._programs[size] = tuple(compilation.jit(call) for call in loaded)
        return self._programs[size]


class _AsItIs:
    """`exposure.Seen` of a picture that nothing is done to, without OpenCV."""

    def __init__(self, image: np.ndarray):
        self.image = image

    def keep(self, restored: np.ndarray) -> np.ndarray:
        return restored


def _checked(image: Any, smallest: int) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"expected a uint8 or uint16 image [H, W, 3], got {array.dtype} {array.shape}"
        )
    if min(array.shape[:2]) < smallest:
        raise ValueError(f"expected at least {smallest}x{smallest} pixels, got {array.shape[:2]}")
    return array
