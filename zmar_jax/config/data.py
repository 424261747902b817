"""What a run is trained and validated on, and how photographs are darkened and lose pixels."""

import dataclasses
import typing
from typing import Literal

from zmar_jax.config.checks import bounded, check_ranges, require, require_range

Benchmark = Literal[
    "lol_v1",
    "lol_v2_real",
    "lol_v2_synthetic",
    "sdsd_indoor",
    "sdsd_outdoor",
    "sid",
]
BENCHMARKS: tuple[str, ...] = typing.get_args(Benchmark)
"""The benchmarks; `photos` is any folder of photographs, `pairs` any of pairs."""


@dataclasses.dataclass(frozen=True)
class NightConfig:
    """A photograph as a camera takes it at night; one scene is drawn for each picture.

    Values are sRGB. Levels are of 255; ranges of factors are drawn log-uniformly, others uniformly.
    """

    tones: tuple[float, float, float] = bounded((0.75, 0.15, 0.1), 0.0, 1.0)
    """Shares of three tone curves: values divided by `dimming` after a power of `contrast`; linear
    light divided by `dimming` to 1.6; values to a power of `power`."""
    dimming: tuple[float, float] = bounded((3.0, 30.0), 1.0, 1000.0)
    contrast: tuple[float, float] = bounded((0.45, 1.1), 0.1, 10.0)
    power: tuple[float, float] = bounded((1.5, 4.5), 1.0, 10.0)
    saturation: tuple[float, float] = bounded((1.2, 3.5), 0.0, 10.0)
    """Range of the factor by which colours are further from grey than these curves leave them."""
    bright_share: float = bounded(0.08, 0.0, 1.0)
    """Share of the pictures that are bright already, and stay so."""
    highlights: float = bounded(0.5, 0.0, 1.0)
    """Share of the pictures whose white areas have more light than white: they stay brighter than
    the rest, up to white."""
    unevenness: float = bounded(0.3, 0.0, 2.0)
    """Largest strength of a smooth random field on linear light, of the natural logarithm."""
    lamps: float = bounded(0.25, 0.0, 1.0)
    """Share of the pictures in which one to three places have more light."""
    cast: float = bounded(0.2, 0.0, 2.0)
    """Standard deviation of the logarithm of red's and blue's gain on linear light."""
    strong_cast: float = bounded(0.8, 0.0, 3.0)
    strong_cast_share: float = bounded(0.3, 0.0, 1.0)
    """Share of the pictures whose gains have the deviation `strong_cast` instead."""
    noise_floor: tuple[float, float] = bounded((0.3, 3.0), 1e-3, 255.0)
    """Deviation of the noise of a black pixel in green, levels; red and blue have up to 2.2 times
    it. The rounding to 8 bits comes on top."""
    shot_noise: float = bounded(0.12, 0.0, 100.0)
    """Largest growth of the noise's variance with the level."""
    grain: float = bounded(0.4, 0.0, 1.0)
    """Largest weight of a pixel's neighbours in its noise: demosaicing blurs it."""
    hot: float = bounded(0.15, 0.0, 1.0)
    """Share of the pictures with hot pixels: 0.003 to 0.1 % of a channel's values at white."""
    jpeg: float = bounded(0.4, 0.0, 1.0)
    """Share of the pictures that are compressed, half of them after pixels are lost."""
    quality: tuple[float, float] = bounded((60.0, 98.0), 1.0, 100.0)
    """Of the compression, as JPEG counts it."""
    frames: float = bounded(0.1, 0.0, 1.0)
    """Share of training crops whose picture has a black frame; it is in the ground truth, too."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("dimming", "contrast", "power", "saturation", "noise_floor", "quality"):
            require_range(name, getattr(self, name))
        require(sum(self.tones) > 0, "tones must not all be 0")


@dataclasses.dataclass(frozen=True)
class DarkenConfig:
    """A low-light photograph from a normal one, uint8."""

    exposure: tuple[float, float] = bounded((0.03, 0.3), 1e-6, 1.0)
    """Range of the factor on linear light, drawn log-uniformly."""
    colour_cast: float = bounded(0.05, 0.0, 1.0)
    """Standard deviation of the natural logarithm of the gains of red and blue; 0 is none."""
    photons: float = bounded(5000.0, 1.0, 1e9)
    """Photons of a white pixel before darkening; fewer is more shot noise."""
    read_noise: float = bounded(5e-4, 0.0, 1.0)
    """Standard deviation of the sensor's noise, of 1 = white in linear light."""
    kind: Literal["night", "gain"] = "night"
    """`night`, as `NightConfig` says; or `gain`, evenly less light, as the settings above say."""
    night: NightConfig = dataclasses.field(default_factory=NightConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        require_range("exposure", self.exposure)


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Which pixels are lost, that is, set to zero (datasets.md, "Zero-element masks")."""

    source: str = "procedural"
    """`procedural`, `none`, or a folder of mask images, white where pixels are lost."""
    share: tuple[float, float] = bounded((0.12, 0.37), 0.0, 0.95)
    """Range of the lost share of a whole image, drawn uniformly; of procedural masks."""
    pictures: float = bounded(1.0, 0.0, 1.0)
    """Share of training crops that lose pixels at all."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require_range("share", self.share)
        require(bool(self.source), "source must be procedural, none or a folder")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset and how batches are made of it. The defaults are the published recipe's."""

    name: Literal["photos", "pairs", Benchmark] = "photos"
    data_dir: str = "data"
    """Where `zmar-jax prepare` wrote the benchmark, and where decoded pixels are cached."""
    cache_gib: float = bounded(16.0, 0.0, 1e6)
    """Pictures of prepared sets and of shards are decoded once where their pixels take at most this
    on the disk, GiB, and else for each crop. Batches are the same. Files are decoded once."""
    folder: str | None = None
    """`photos`: clean photographs to train on, in files, or in shards as `zmar-jax prepare photos`
    wrote them, which may lie at a URL; null is the handful that comes with scikit-image.
    `pairs`: dark pictures and their ground truths (docs/data.md)."""
    val_folder: str | None = None
    """The same to validate on; null takes `val_share` of `folder`, or the part of it that is called
    val or test, where pairs lie in several."""
    gt_folder: str | None = None
    """`pairs`: the ground truths, where `folder` holds the dark pictures alone."""
    clean: bool = False
    """`photos`: all of `folder` is clean photographs, even where its subfolders' names say low and
    ground truth."""
    skip_broken: bool = False
    """Pictures that cannot be read, or are smaller than a crop, are named and left out; else they
    end the run before it starts."""
    val_share: float = bounded(0.1, 0.0, 1.0)
    """Share of `folder` that is kept for validation, chosen by a hash of the name."""
    sdsd_test_frames: int | None = None
    """Test frames taken of each SDSD scene; null is all (docs/datasets.md: SNR 30, RF all)."""
    batch_size: int = 16
    """Examples of a training batch, over all hosts."""
    crop: int = bounded(160, 16)
    """Height and width of a training crop, pixels; a multiple of the model's stride."""
    shrink: float = bounded(1.0, 1.0, 16.0)
    """`photos`: a training crop shows its photograph at 1/1 to 1/`shrink` of its size, so that a
    small crop shows more of it; a factor that leaves less than a crop is not drawn."""
    flip: Literal["none", "horizontal", "dihedral"] = "horizontal"
    """Mirrored with probability 1/2, or any of the eight turns and mirrors of the square."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Of order, crops, flips, masks and darkening."""
    workers: int = bounded(2, 0, 256)
    """Processes that load batches on each host; 0 loads in the training process."""
    masks: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    darken: DarkenConfig = dataclasses.field(default_factory=DarkenConfig)
    """Of `photos`; the benchmarks are dark already."""
    concat_histeq: bool = False
    """Not supported: no released configuration of this model uses it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.name != "pairs" or self.folder is not None,
            "folder must name a folder of pairs where name is pairs",
        )
        require(
            self.name == "pairs" or self.gt_folder is None,
            f"gt_folder is of name pairs, not of {self.name}",
        )
        require(
            not self.concat_histeq,
            "concat_histeq is not supported: no released configuration of this model has the "
            "histogram-equalised input; remove the key",
        )
