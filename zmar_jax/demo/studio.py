"""Restoring a picture of the page: the restorers that are loaded, the work, what it leaves."""

import collections
import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np

from zmar_jax.data.masks import read_mask
from zmar_jax.demo.errors import DemoError, gone
from zmar_jax.demo.jobs import Job
from zmar_jax.imaging.exposure import Seen
from zmar_jax.imaging.images import Photo, pad_to_multiple, read_photo, size_text, write_photo
from zmar_jax.restore import Restorer, load_restorer
from zmar_jax.restore.restorer import Stage, check_size
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights.download import is_remote, parse

EXPECTED: tuple[type[Exception], ...] = (
    ValueError,
    MemoryError,
    OSError,
    jax.errors.JaxRuntimeError,
)
"""Errors of pictures, weights and memory, whose text is for the visitor."""
LOADED = 2
"""So many restorers are kept in memory."""
LOST_COLOUR = (255, 0, 200, 170)


@dataclasses.dataclass(frozen=True)
class Result:
    """The files of a restoration, and what the page says of it."""

    restored: Path
    lost: Path
    """Lost pixels in colour, all else transparent."""
    lost_share: float
    spread: Path | None
    spread_scale: float
    """What the brightest colour of the spread means, of 255."""


class Shelf:
    """Names of weights, and where they are; a visitor names weights, and never a path.

    Args:
      given: of the command line, after the bundled ones: paths, or `hf:user/name`.
      free: whether visitors may bring their own, as a file or of the Hub.
    """

    def __init__(self, given: Sequence[str] = (), free: bool = True):
        self.free: bool = free
        self._places = {"bundled": "bundled"} | {name: name for name in given}

    def names(self) -> list[str]:
        return list(self._places)

    def add(self, name: str, path: Path) -> str:
        """A file that a visitor brought, under its own name or, if that is taken, another."""
        while name in self._places:
            name = f"{secrets.token_hex(2)}-{name}"
        self._places[name] = str(path)
        return name

    def find(self, name: str) -> str:
        if name in self._places:
            return self._places[name]
        if is_remote(name) and self.free:
            try:
                parse(name)
            except WeightsError as e:
                raise DemoError(str(e)) from e
            return name
        brings = "; or bring a file, or name hf:user/name" if self.free else ""
        raise DemoError(
            f"{name}: no such weights here; there are {', '.join(self.names())}{brings}"
        )


class Studio:
    """Does jobs.

    Args:
      shelf: the weights to choose from.
      load: makes a restorer of a place.
    """

    def __init__(self, shelf: Shelf, load: Callable[[str], Restorer] = load_restorer):
        self.shelf: Shelf = shelf
        self._load = load
        self._restorers: collections.OrderedDict[str, Restorer] = collections.OrderedDict()
        self._compiled: set[tuple[str, int, int]] = set()
        self._pace: dict[str, tuple[float, float]] = {}  # seconds a pixel: encoder, sample

    def restorer(self, name: str) -> Restorer:
        """The restorer with these weights, loaded where it is not."""
        place = self.shelf.find(name)
        if name not in self._restorers:
            try:
                self._restorers[name] = self._load(place)
            except ValueError as e:
                raise DemoError(str(e).replace(place, name)) from e
            for old in list(self._restorers)[:-LOADED]:
                del self._restorers[old]
                self._compiled = {key for key in self._compiled if key[0] != old}
        self._restorers.move_to_end(name)
        return self._restorers[name]

    def warm_up(self, size: tuple[int, int]) -> None:
        """Compiles for pictures of (height, width), and measures how long one takes."""
        grey = np.full((*size, 3), 40, np.uint8)
        restorer = self.restorer("bundled")
        for _ in range(2):
            self._sample(restorer, "bundled", restorer.see(grey, "none"), lambda *_: None)

    def work(self, job: Job) -> Result:
        """Restores the job's picture; raises what `Restorer.sample` and `Job.tell` raise."""
        wish, picture = job.wish, job.picture
        job.tell("reading the weights")
        restorer = self.restorer(wish.weights)
        if not picture.source.exists():
            raise gone("picture")
        photo = read_photo(picture.source)
        check_size(photo.rgb, restorer.config)
        restorer.programs(*pad_to_multiple(photo.rgb, restorer.config.stride).shape[:2])
        job.tell("looking for lost pixels")
        mask = read_mask(picture.mask) if wish.mask == "painted" else wish.mask
        hidden = None if photo.alpha is None else photo.alpha == 0
        seen = restorer.see(photo.rgb, mask, wish.brightness, hidden)
        image, std = self._sample(
            restorer, wish.weights, seen, job.tell, wish.heat, wish.seed, wish.samples
        )
        job.tell("writing the result")
        prefix = picture.folder / job.id
        restored, lost = Path(f"{prefix}.restored.png"), Path(f"{prefix}.lost.png")
        write_photo(restored, photo.with_rgb(image))
        write_photo(lost, _overlay(seen.lost))
        spread, scale = None, 0.0
        if wish.samples > 1:
            spread = Path(f"{prefix}.spread.png")
            colours, scale = spread_map(std * (255 / np.iinfo(image.dtype).max))
            write_photo(spread, Photo(colours))
        return Result(restored, lost, seen.lost_share, spread, scale)

    def _sample(
        self,
        restorer: Restorer,
        name: str,
        seen: Seen,
        tell: Callable[[str, float | None], None],
        heat: float = 0.0,
        seed: int = 0,
        samples: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Restorer.sample_seen`; tells each stage, and how long all may take if that is known.

        Stages of sizes that were compiled before are measured, for the pictures to come.
        """
        height, width = seen.image.shape[:2]
        padded = pad_to_multiple(seen.image[..., :1], restorer.config.stride).shape[:2]
        known = (name, *padded) in self._compiled
        times: list[float] = []

        def begin(stage: Stage) -> None:
            pace = self._pace.get(name)
            whole = stage.views * (pace[0] + samples * pace[1]) if pace else 0.0
            expected = height * width * whole if known and pace else None
            what = f"sample {stage.sample} of {samples}" if stage.sample else "looking at it"
            if stage.views > 1:
                what = f"view {stage.view} of {stage.views}: {what}"
            if not known and stage.view == 1 and stage.sample < 2:
                what += f"; first compiling for {size_text(padded)}, which may take a minute"
            times.append(time.monotonic())
            tell(what, expected)

        done = restorer.sample_seen(seen, heat, seed, samples, tell=begin)
        times.append(time.monotonic())
        self._compiled.add((name, *padded))
        if known:
            views = np.diff(times).reshape(-1, 1 + samples) / (height * width)
            self._pace[name] = (float(views[:, 0].mean()), float(views[:, 1:].mean()))
        return done


def spread_map(std: np.ndarray) -> tuple[np.ndarray, float]:
    """uint8 [H, W, 3] in colour of deviations [H, W, 3], and what the brightest colour stands for.

    That is the 99.5th percentile, so that single pixels do not make all others dark.
    """
    mean = std.mean(-1)
    scale = max(float(np.percentile(mean, 99.5)), 1e-6)
    grey = np.round(np.minimum(mean / scale, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB), scale


def _overlay(lost: np.ndarray) -> Photo:
    colour = np.array(LOST_COLOUR, np.uint8) * lost[..., None].astype(np.uint8)
    return Photo(np.ascontiguousarray(colour[..., :3]), np.ascontiguousarray(colour[..., 3]))
