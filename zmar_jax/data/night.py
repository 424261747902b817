"""A photograph as a camera takes it at night.

Every part is a pure function of a seed, and of a pixel's place in its whole picture. What is drawn
for a picture is a `Scene`; light that is uneven, lamps and frames lie in coordinates from 0 to 1,
so that a crop, a smaller copy and the whole picture show the same scene.

What the parts are like was measured on real dark photographs (docs/data.md): values are about a
tenth of the bright picture's, with less contrast than linear light would leave; colours are
stronger; noise grows slowly with the value, and is stronger in red and blue.
"""

import functools
import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from zmar_jax.config import NightConfig
from zmar_jax.data.hashing import fold, normal_quantiles, top16
from zmar_jax.data.srgb import to_linear, to_srgb

_STREAM, _NOISE, _GRAIN, _HOT = 0x6E696768, 1, 2, 3
_WAVES = 6
_LAMPS = 3
_DRAWS = 96
"""Numbers that a scene is made of, or a few more."""


class Place(NamedTuple):
    """Which part of a picture is looked at, pixels: top, left, height, width, and the whole."""

    top: float
    left: float
    height: int
    width: int
    full_height: float
    full_width: float

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """y [height, 1] and x [1, width] of the pixels' centres, from 0 to 1."""
        y = (self.top + np.arange(self.height, dtype=np.float32) + 0.5) / self.full_height
        x = (self.left + np.arange(self.width, dtype=np.float32) + 0.5) / self.full_width
        return y[:, None], x[None]


class Scene(NamedTuple):
    """What is drawn once for a picture."""

    tone: str
    dimming: float
    contrast: float
    saturation: float
    cast: np.ndarray
    highlights: float
    unevenness: float
    waves: np.ndarray
    lamps: np.ndarray
    frame: int
    frame_size: float
    noise_floor: float
    shot_noise: float
    noise_gains: np.ndarray
    grain: float
    hot: float
    quality: int | None
    jpeg_last: bool
    seed: int

    @property
    def compressed_last(self) -> bool:
        """Whether the file is compressed after pixels are lost, which then are not quite zero."""
        return self.quality is not None and self.jpeg_last


def whole(height: int, width: int) -> Place:
    """All of a picture of this size."""
    return Place(0, 0, height, width, height, width)


def draw_scene(seed: int, config: NightConfig) -> Scene:
    """The scene of a picture with this seed, below 2**32."""
    u = _Draws(seed)
    untouched = u() < config.bright_share
    tone = "none" if untouched else ("value", "linear", "power")[_pick(u(), config.tones)]
    dimming, contrast, power = u.log(config.dimming), u.log(config.contrast), u.log(config.power)
    wide = config.strong_cast if u() < config.strong_cast_share else config.cast
    cast = np.exp(wide * np.array([u.normal(), 0.0, u.normal()])).astype(np.float32)
    highlights = u.log((1.0, dimming)) if u() < config.highlights else 1.0
    unevenness = u() * config.unevenness
    waves = np.array([[u.normal() for _ in range(4)] for _ in range(_WAVES)])
    lamps = np.array([[u(), u(), u.log((0.02, 0.2)), u.log((1.5, 6.0))] for _ in range(_LAMPS)])
    lamps = lamps[: 1 + int(u() * _LAMPS)] if u() < config.lamps else lamps[:0]
    framed, kind, frame_size = u() < config.frames, 1 + int(u() * 4), 0.04 + 0.14 * u()
    gains = np.array([u.log((1.0, 2.2)), 1.0, u.log((1.0, 2.2))])
    floor, shot = u.log(config.noise_floor), u() * config.shot_noise
    quality = round(config.quality[0] + u() * (config.quality[1] - config.quality[0]))
    compressed, last, grain = u() < config.jpeg, u() < 0.5, u() * config.grain
    hot = 10 ** (-4.5 + 1.5 * u()) if u() < config.hot else 0.0
    saturation = u.log(config.saturation)
    if untouched:
        floor /= 4
    return Scene(
        tone,
        dimming,
        power if tone == "power" else contrast,
        saturation,
        cast,
        highlights,
        unevenness,
        waves.astype(np.float32),
        lamps.astype(np.float32),
        kind if framed else 0,
        frame_size,
        floor,
        shot,
        gains.astype(np.float32),
        grain,
        hot,
        quality if compressed else None,
        last,
        int(fold(seed, _NOISE)),
    )


def night(
    photo: np.ndarray, scene: Scene, place: Place, lost: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The dark picture, and its ground truth: the photograph, black where a frame is.

    Args:
      photo: uint8 [h, w, 3] RGB, the part at `place`.
      lost: bool [h, w], pixels that are lost, before or after the file is compressed.

    Returns:
      uint8 [h, w, 3] both.
    """
    framed = in_frame(scene, place)
    low = _with_noise(darkened(photo, scene, place), scene)
    low[framed] = 0
    if scene.quality is not None and not scene.jpeg_last:
        low = _jpeg(low, scene.quality)
    if lost is not None:
        low[lost] = 0
    if scene.quality is not None and scene.jpeg_last:
        low = _jpeg(low, scene.quality)
    gt = np.where(framed[..., None], np.uint8(0), photo) if scene.frame else photo
    return low, gt


def darkened(photo: np.ndarray, scene: Scene, place: Place) -> np.ndarray:
    """The scene without noise, float32 [h, w, 3] of 1 = white; may exceed it."""
    if scene.tone == "none":
        return photo.astype(np.float32) / 255
    light = np.take(_linear_table(), photo)
    if scene.highlights > 1:
        red, green, blue = cv2.split(photo)
        brightest = np.maximum(np.maximum(red, green), blue).astype(np.float32)
        share = np.clip((brightest - 235) / 20, 0, 1)
        light *= _thrice(1 + share * np.float32(scene.highlights**2.2 - 1))
    if scene.unevenness or len(scene.lamps):
        light *= _thrice(_illumination(scene, place))
    light *= _row(scene.cast, light)
    value = _toned(light, scene)
    if scene.saturation != 1:
        grey = _thrice(value.mean(-1))
        value = np.maximum(grey + np.float32(scene.saturation) * (value - grey), 0)
    return value


def _toned(light: np.ndarray, scene: Scene) -> np.ndarray:
    """The dark picture's values, float32, from linear light."""
    if scene.tone == "linear":
        return to_srgb(light * scene.dimming**-1.6).astype(np.float32)
    value = np.maximum(light, 1e-6) ** np.float32(scene.contrast / 2.2)
    dimming = scene.dimming if scene.tone == "value" else max(scene.dimming / 6, 1.0)
    return value / np.float32(dimming)


def _thrice(field: np.ndarray) -> np.ndarray:
    """[h, w] -> [h, w, 3]: products with it are much faster than with [h, w, 1]."""
    return cv2.merge((field, field, field))


def _row(channels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """[3] -> [1, w, 3] of an image [h, w, 3], as `_thrice`."""
    return np.tile(channels, (1, image.shape[1], 1))


def in_frame(scene: Scene, place: Place) -> np.ndarray:
    """bool [h, w]: the black border. 1 is a letterbox, 2 a pillarbox, 3 both, 4 a round lens."""
    y, x = place.coordinates()
    if not scene.frame:
        return np.zeros((place.height, place.width), bool)
    if scene.frame == 4:
        aspect = place.full_width / place.full_height
        radius = 0.5 * max(aspect, 1 / aspect) * (1.1 - scene.frame_size)
        return ((y - 0.5) ** 2 + ((x - 0.5) * aspect) ** 2 > radius**2) | (y < 0)
    rows = (np.abs(y - 0.5) > 0.5 - scene.frame_size) & (scene.frame != 2)
    columns = (np.abs(x - 0.5) > 0.5 - scene.frame_size) & (scene.frame != 1)
    return rows | columns


def _illumination(scene: Scene, place: Place) -> np.ndarray:
    """float32 [h, w]: factors on linear light, about 1 on average."""
    y, x = place.coordinates()
    field = np.zeros((place.height, place.width), np.float32)
    for i, (a, b, phase, weight) in enumerate(scene.waves):
        scale = 2.0 if i < 3 else 4.5
        field += weight * np.cos(scale * (a * y + b * x) + 3 * phase)
    light = np.exp(np.float32(scene.unevenness) * field)
    aspect = place.full_width / place.full_height
    for cy, cx, radius, strength in scene.lamps:
        square = ((y - cy) ** 2 + ((x - cx) * aspect) ** 2) / (2 * radius**2)
        light *= 1 + strength * np.exp(-square)
    return light


def _with_noise(clean: np.ndarray, scene: Scene) -> np.ndarray:
    """uint8 of values of 1 = white, after noise, hot pixels and rounding."""
    value = 255 * np.minimum(clean, 1)
    deviation = np.sqrt(scene.noise_floor**2 + scene.shot_noise * value)
    deviation *= _row(scene.noise_gains, value)
    value += deviation * _grain(value.shape, scene)
    if scene.hot:
        chance = fold(scene.seed, _HOT, np.arange(value.size, dtype=np.uint32))
        value[(chance < scene.hot * 2**32).reshape(value.shape)] = 255
    return np.rint(np.clip(value, 0, 255)).astype(np.uint8)


def _grain(shape: tuple[int, ...], scene: Scene) -> np.ndarray:
    """Standard normal noise, a little blurred as by demosaicing, float32 [h, w, 3]."""
    noise = normals(int(fold(scene.seed, _GRAIN)), shape)
    kernel = np.array([scene.grain, 1, scene.grain], np.float32)
    kernel /= np.sqrt(np.square(kernel).sum())
    return cv2.sepFilter2D(noise, -1, kernel, kernel)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


@functools.cache
def _linear_table() -> np.ndarray:
    return to_linear(np.arange(256) / 255).astype(np.float32)


class _Draws:
    """Numbers that a seed gives one after the other."""

    def __init__(self, seed: int):
        seed = int(fold(seed, _STREAM))
        # all at once, as one alone takes as long as a hundred
        self._numbers = iter((fold(seed, np.arange(1, _DRAWS + 1)) / 2**32).tolist())

    def __call__(self) -> float:
        """Uniform in [0, 1)."""
        return next(self._numbers)

    def log(self, bounds: tuple[float, float]) -> float:
        """Log-uniform."""
        return bounds[0] * (bounds[1] / bounds[0]) ** self()

    def normal(self) -> float:
        return float(normal_quantiles()[int(65536 * self())])


def _pick(u: float, shares: tuple[float, ...]) -> int:
    """The index that a number in [0, 1) falls on, by shares that need not add up to 1."""
    return int(np.searchsorted(np.cumsum(shares) / np.sum(shares), u, side="right"))


def normals(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 of this shape; two from each hash."""
    n = int(np.prod(shape))
    bits = fold(seed, np.arange((n + 1) // 2, dtype=np.uint32))
    halves = np.concatenate([np.bitwise_and(bits, np.uint32(0xFFFF)).astype(np.int32), top16(bits)])
    return normal_quantiles()[halves[:n]].reshape(shape)
