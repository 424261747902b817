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
DATASETS: tuple[str, ...] = typing.get_args(Benchmark)
"""The benchmarks; `photos` is any folder of photographs."""


@dataclasses.dataclass(frozen=True)
class DarkenConfig:
    """A low-light photograph from a normal one: linear light, exposure, cast, noise, uint8."""

    exposure: tuple[float, float] = bounded((0.03, 0.3), 1e-6, 1.0)
    """Range of the factor on linear light, drawn log-uniformly."""
    colour_cast: float = bounded(0.05, 0.0, 1.0)
    """Standard deviation of the natural logarithm of the gains of red and blue; 0 is none."""
    photons: float = bounded(5000.0, 1.0, 1e9)
    """Photons of a white pixel before darkening; fewer is more shot noise."""
    read_noise: float = bounded(5e-4, 0.0, 1.0)
    """Standard deviation of the sensor's noise, of 1 = white in linear light."""

    def __post_init__(self):
        check_ranges(self)
        require_range("exposure", self.exposure)


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Which pixels are lost, that is, set to zero (DATASETS, "Zero-element masks")."""

    source: str = "procedural"
    """`procedural`, `none`, or a folder of mask images, white where pixels are lost."""
    share: tuple[float, float] = bounded((0.12, 0.37), 0.0, 0.95)
    """Range of the lost share of a whole image, drawn uniformly; of procedural masks."""

    def __post_init__(self):
        check_ranges(self)
        require_range("share", self.share)
        require(bool(self.source), "source must be procedural, none or a folder")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset and how batches are made of it. The defaults are the published recipe's."""

    name: Literal["photos", Benchmark] = "photos"
    data_dir: str = "data"
    """Where `zmar-jax prepare` wrote the benchmark, and where decoded pixels are cached."""
    folder: str | None = None
    """`photos`: clean photographs to train on; null is the handful that comes with scikit-image."""
    val_folder: str | None = None
    """`photos`: clean photographs to validate on; null takes `val_share` of `folder`."""
    val_share: float = bounded(0.1, 0.0, 1.0)
    """Share of `folder` that is kept for validation, chosen by a hash of the name."""
    sdsd_test_frames: int | None = None
    """Test frames taken of each SDSD scene; null is all (DATASETS: 30 in SNR, all in RF)."""
    batch_size: int = 16
    """Examples of a training batch, over all hosts."""
    crop: int = bounded(160, 16)
    """Height and width of a training crop, pixels; a multiple of 8."""
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

    def __post_init__(self):
        check_ranges(self)
        require(self.crop % 8 == 0, f"crop must be a multiple of 8, got {self.crop}")
        require(
            not self.concat_histeq,
            "concat_histeq is not supported: no released configuration of this model has the "
            "histogram-equalised input; remove the key",
        )
