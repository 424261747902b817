"""Restoring photographs: an array, or files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zmar_jax.config import ConfigError, ModelConfig
from zmar_jax.exposure import expose
from zmar_jax.flow import invert_weights
from zmar_jax.images import (
    ImageError,
    Photo,
    Step,
    pad_to_eights,
    read_photo,
    size_text,
    write_photo,
)
from zmar_jax.latents import Tally, latent
from zmar_jax.memory import choose
from zmar_jax.programs import Programs, make_programs, make_split_programs
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import BUNDLED, load_weights

SMALLEST = 16


def load_restorer(
    path: str | Path | None = None, memory: int | None = None, devices: int = 1
) -> "Restorer":
    """A `Restorer` with the weights in `path`: .pth, .safetensors or an Orbax directory.

    Without a path, the weights that come with the package.

    Args:
      memory, devices: as of `Restorer`.

    Raises:
      ValueError: names the file, what is wrong with it, and what to do.
    """
    weights = load_weights(path)
    try:
        return Restorer(weights.config, weights.params, memory, devices)
    except np.linalg.LinAlgError as e:
        raise WeightsError(
            f"{path or BUNDLED}: an invconv.weight is singular ({e}); use other weights"
        ) from e


class Restorer:
    """Restores photographs of any size; each padded size is compiled once (SPEC section 6).

    ```
    restorer = load_restorer("weights")
    image = restorer(uint8_hw3, heat=0.0, seed=0)
    ```

    Args:
      memory: bytes that a picture may take on each device; None: what there is, less a reserve.
      devices: how many share the rows of a picture; small pictures take fewer.
    """

    def __init__(
        self, config: ModelConfig, params: Any, memory: int | None = None, devices: int = 1
    ):
        if devices < 1:
            raise ConfigError(f"devices must be 1 or more, got {devices}")
        self.config, self.memory, self.devices = config, memory, devices
        self.variables = {"params": params, "inverse": invert_weights(params)}
        self._programs: dict[Any, Programs] = {}

    def programs(self, height: int, width: int) -> Programs:
        """What restores pictures of this size, multiples of 8.

        Raises:
          MemoryLimitError: such a picture does not fit.
        """
        plan = choose(self.config, height, width, self.memory, self.devices)
        key = (plan.stripe_bytes, plan.devices, height if plan.devices > 1 else None)
        if key not in self._programs:
            self._programs[key] = (
                make_split_programs(self.config, plan.stripe_bytes, plan.devices, height)
                if plan.devices > 1
                else make_programs(self.config, plan.stripe_bytes)
            )
        return self._programs[key]

    def __call__(self, image: np.ndarray, heat: float = 0.0, seed: int = 0) -> np.ndarray:
        """The restored photograph.

        Args:
          image: uint8 or uint16 [H, W, 3] RGB, H and W at least 16.
          heat: standard deviation of the latent, 0 or more; 0 gives the mode.
          seed: of the latent; without effect at heat 0.

        Returns:
          The same shape and dtype.

        Raises:
          ValueError: not such an image, or a negative heat.
          MemoryLimitError: a ValueError, too; the picture does not fit into memory.
        """
        return self.sample(image, heat, seed, samples=1)[0]

    def sample(
        self, image: np.ndarray, heat: float, seed: int = 0, samples: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over several restorations; one encoder pass for all.

        Args: as of a call; samples: how many, at least 1.

        Returns:
          mean: rounded to the dtype of `image`, [H, W, 3].
          std: float32 [H, W, 3], in units of the dtype (0 to 127.5 for uint8).
        """
        _check(image, heat, seed, samples)
        height, width, _ = image.shape
        padded = pad_to_eights(expose(image, self.config.white_point))
        programs = self.programs(*padded.shape[:2])
        features = programs.encode(self.variables, padded[None])
        coarsest = (padded.shape[0] // 8, padded.shape[1] // 8)
        tally = Tally(image.shape)
        for i in range(samples):
            z = latent(heat, seed, i, coarsest)
            x = programs.picture(programs.decode(self.variables, z, features))[0]
            tally.add(x[:height, :width])
        if not np.isfinite(tally.mean).all():
            lower = f" at heat {heat}; lower it, or" if heat else ";"
            raise ValueError(f"restored pixels are not finite{lower} check the weights")
        full = np.iinfo(image.dtype).max
        mean = np.round(full * tally.mean).astype(image.dtype)
        return mean, (full * tally.std).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Options:
    """How `restore_files` restores: as `Restorer.sample`; `std` writes the deviation, too."""

    heat: float = 0.0
    samples: int = 1
    seed: int = 0
    std: bool = False


def restore_files(
    restorer: Restorer,
    paths: Sequence[tuple[Path, Path]],
    options: Options,
    done: Step,
) -> list[Path]:
    """Restores each (source, target); a failure is reported and the others go on.

    Args:
      done: called after each file with source, target, and the error or None.

    Returns:
      The sources that failed.
    """
    failed = []
    for source, target in paths:
        error = None
        try:
            restore_file(restorer, source, target, options)
        except (ImageError, ValueError, MemoryError, jax.errors.JaxRuntimeError) as e:
            failed.append(source)
            error = e
        done(source, target, error)
    return failed


def restore_file(restorer: Restorer, source: Path, target: Path, options: Options) -> None:
    """Restores one file; the deviation, if wanted, goes beside it as `std_path(target)`."""
    photo = read_photo(source)
    image, std = restorer.sample(photo.rgb, options.heat, options.seed, options.samples)
    write_photo(target, photo.with_rgb(image))
    if options.std:
        write_photo(std_path(target), Photo(np.round(std).astype(photo.rgb.dtype)))


def std_path(target: Path) -> Path:
    """Where the standard deviation goes: `a/b.png` -> `a/b.std.png`."""
    return target.with_suffix(f".std{target.suffix}")


def _check(image: np.ndarray, heat: float, seed: int, samples: int) -> None:
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"expected a uint8 or uint16 image [H, W, 3], got {image.dtype} {image.shape}"
        )
    if min(image.shape[:2]) < SMALLEST:
        raise ValueError(
            f"expected at least {SMALLEST}x{SMALLEST} pixels, got "
            f"{size_text(image.shape)} (width x height)"
        )
    if not heat >= 0 or not np.isfinite(heat):
        raise ValueError(f"heat must be 0 or more, got {heat}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 or more and below 2**32, got {seed}")
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, got {samples}")
