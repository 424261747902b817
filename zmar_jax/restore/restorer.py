"""Restoring a photograph that is an array."""

import math
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from PIL.Image import Image

from zmar_jax.config import ConfigError, ModelConfig
from zmar_jax.flow import invert_weights
from zmar_jax.imaging.exposure import Seen, as_seen
from zmar_jax.imaging.images import (
    pad_to_multiple,
    size_text,
)
from zmar_jax.imaging.views import Views, choose_views
from zmar_jax.restore.arguments import amount, lost_pixels, picture, real, whole
from zmar_jax.restore.latents import Tally, latent
from zmar_jax.restore.memory import Stripes, choose
from zmar_jax.restore.programs import RestorePrograms, make_programs, make_split_programs
from zmar_jax.runtime.stop import stop_if_asked
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import BUNDLED, load_weights

Picture = np.ndarray | Image | str | Path
"""A photograph, as `arguments.picture` takes it."""
Mask = np.ndarray | Image | Path | Literal["auto", "none"]
Brightness = float | Literal["auto"]


def load_restorer(
    path: str | Path | None = None,
    memory: int | str | None = None,
    devices: int = 1,
    stripes: Stripes = "auto",
) -> "Restorer":
    """A `Restorer` with the weights in `path`: .pth, .safetensors or an Orbax directory.

    Without a path, the weights that come with the package.

    Args:
      memory, devices, stripes: as for `Restorer`.

    Raises:
      ValueError: names the file, what is wrong with it, and what to do.
    """
    weights = load_weights(path)
    try:
        restorer = Restorer(weights.config, weights.params, memory, devices, stripes)
    except np.linalg.LinAlgError as e:
        raise WeightsError(
            f"{path or BUNDLED}: an invconv.weight is singular ({e}); use other weights"
        ) from e
    restorer.source = weights.source
    return restorer


class Stage(NamedTuple):
    """What is worked on: sample `sample` of view `view`, from 1; sample 0 is the encoder."""

    view: int
    views: int
    sample: int
    samples: int


class Restorer:
    """Restores photographs of any size; each padded size is compiled once (model.md section 6).

    ```
    restorer = load_restorer("weights")
    image = restorer(uint8_hw3, heat=0.0, seed=0)
    ```

    Args:
      memory: bytes that a picture may take on each device, as 17_000_000_000 or `16GiB`; None: what
        there is, less a reserve.
      devices: how many share the rows of a picture; small pictures take fewer.
      stripes: `auto` works on a picture in stripes where that is faster or needed to fit; `none`
        works on all rows at once. The pictures are the same up to rounding.

    Raises:
      ConfigError: no device, or another word for the stripes.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        memory: int | str | None = None,
        devices: int = 1,
        stripes: Stripes = "auto",
    ):
        if stripes not in ("auto", "none"):
            raise ConfigError(f"stripes must be auto or none, got {stripes!r}")
        self.config: ModelConfig = config
        self.memory: int | None = amount(memory)
        self.devices: int = whole("devices", devices, 1)
        self.stripes: Stripes = stripes
        self.source: str = "weights"  # as `weights.Weights.source`
        self.variables: dict[str, Any] = {"params": params, "inverse": invert_weights(params)}
        self._programs: dict[Any, RestorePrograms] = {}

    def programs(self, height: int, width: int) -> RestorePrograms:
        """What restores pictures of this size, multiples of the stride.

        Raises:
          MemoryLimitError: such a picture does not fit.
        """
        plan = choose(self.config, height, width, self.memory, self.devices, self.stripes)
        key = (plan.stripe_bytes, plan.devices, height if plan.devices > 1 else None)
        if key not in self._programs:
            self._programs[key] = (
                make_split_programs(self.config, plan.stripe_bytes, plan.devices, height)
                if plan.devices > 1
                else make_programs(self.config, plan.stripe_bytes)
            )
        return self._programs[key]

    def __call__(
        self,
        image: Picture,
        heat: float = 0.0,
        seed: int = 0,
        mask: Mask = "auto",
        brightness: Brightness = "auto",
        views: Views = "auto",
    ) -> np.ndarray:
        """The restored photograph.

        Args:
          image: uint8 or uint16 [H, W, 3] RGB, at least `ModelConfig.smallest` pixels on each edge;
            or a PIL image, or the path of a file. Transparency is left out.
          heat: standard deviation of the latent, 0 or more; 0 gives the mode.
          seed: of the latent; without effect at heat 0.
          mask: which pixels are lost: an array [H, W], bool or nonzero where one is; a PIL image
            or the Path of a file that is white there; `none`; or `auto`, which finds them
            (`lost.find_lost`). Published weights take zero for lost.
          brightness: a factor on the brightness that `auto`, 1, chooses; 1.5 is brighter.
          views: of how many mirrored and turned views the restorations are averaged
            (`views.choose_views`); 1 takes the least time.

        Returns:
          The same shape and dtype.

        Raises:
          TypeError, ValueError: not such an image or mask, or a negative heat; says what was
            expected.
          MemoryLimitError: a ValueError, too; the picture does not fit into memory.
        """
        return self.sample(image, heat, seed, 1, mask, brightness, views)[0]

    def sample(
        self,
        image: Picture,
        heat: float,
        seed: int = 0,
        samples: int = 1,
        mask: Mask = "auto",
        brightness: Brightness = "auto",
        views: Views = "auto",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over several restorations; one encoder pass for each view.

        Args: as for a call; samples: how many of each view, at least 1.

        Returns:
          mean: rounded to the dtype of `image`, [H, W, 3].
          std: float32 [H, W, 3], in units of the dtype (0 to 127.5 for uint8).
        """
        image = picture(image)
        check_size(image, self.config)
        return self.sample_seen(self.see(image, mask, brightness), heat, seed, samples, views)

    def see(
        self,
        image: Picture,
        mask: Mask = "auto",
        brightness: Brightness = "auto",
        hidden: np.ndarray | None = None,
    ) -> Seen:
        """The picture as the model is to see it, and the share of its pixels that are lost.

        Args: as for a call; hidden: bool [H, W], pixels whose light does not count.
        """
        factor = 1.0 if brightness == "auto" else _checked_factor(brightness)
        image = picture(image)
        lost = lost_pixels(mask, image.shape[:2])
        return as_seen(image, self.config.brightness, lost, factor, hidden)

    def sample_seen(
        self,
        seen: Seen,
        heat: float,
        seed: int = 0,
        samples: int = 1,
        views: Views = "auto",
        tell: Callable[[Stage], None] = lambda stage: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `sample` returns, from what `see` gave.

        Args:
          tell: called when a stage begins; what it raises ends the work.
        """
        image = seen.image
        heat, seed = real("heat", heat), whole("seed", seed, 0, 2**32)
        samples = whole("samples", samples, 1)
        chosen = choose_views(views, self.config.brightness, heat)
        tally = Tally(image.shape)
        for number, view in enumerate(chosen, 1):
            shown = view.of(image)
            height, width, _ = shown.shape
            padded = pad_to_multiple(shown, self.config.stride)
            programs = self.programs(*padded.shape[:2])
            stop_if_asked()
            tell(Stage(number, len(chosen), 0, samples))
            features = jax.block_until_ready(programs.encode(self.variables, padded[None]))
            shape = self.config.latent_shape(*padded.shape[:2])
            for i in range(samples):
                stop_if_asked()
                tell(Stage(number, len(chosen), i + 1, samples))
                z = latent(heat, seed, i, shape)
                x = programs.picture(programs.decode(self.variables, z, features))[0]
                tally.add(seen.keep(view.back(x[:height, :width])))
        if not np.isfinite(tally.mean).all():
            lower = f" at heat {heat}; lower it, or" if heat else ";"
            raise ValueError(f"restored pixels are not finite{lower} check the weights")
        full = np.iinfo(image.dtype).max
        mean = np.round(full * tally.mean).astype(image.dtype)
        return mean, (full * tally.std).astype(np.float32)


def _checked_factor(brightness: Any) -> float:
    if not isinstance(brightness, numbers.Real) or not 0 < float(brightness) < math.inf:
        raise ValueError(f"brightness must be auto or a factor above 0, got {brightness!r}")
    return float(brightness)


def check_size(image: np.ndarray, config: ModelConfig) -> None:
    """Raises ValueError where a picture [H, W, 3] is smaller than the model can restore."""
    least = config.smallest
    if min(image.shape[:2]) < least:
        raise ValueError(
            f"expected at least {least}x{least} pixels, got "
            f"{size_text(image.shape)} (width x height)"
        )
