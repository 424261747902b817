"""The best restoration of dark photographs with lost pixels that scikit-image's filters can make.

Fills the lost pixels, brightens, denoises. Every setting is tuned on one set of pairs, one step
after the other until nothing improves, and scored on another. Two rows tell what limits it: the
chain with the brightness chosen per picture from its ground truth; and the ground truth itself,
neither dark nor noisy, with the lost pixels filled. Pairs are made by `zmar-jax mask --darken`.

$ zmar-jax mask photos/train tune --darken && zmar-jax mask photos/val test --darken
$ python scripts/classical_baseline.py --tune-low tune/images --tune-gt photos/train \
      --low test/images --gt photos/val --json baseline.json
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from scipy.ndimage import distance_transform_edt
from scipy.optimize import brentq, minimize_scalar
from skimage import exposure, restoration
from tyro.conf import arg

from zmar_jax.exposure import to_linear, to_srgb
from zmar_jax.images import find_photos, read_photo
from zmar_jax.metrics import score
from zmar_jax.run.folder import write_whole

console = Console(stderr=True)
GAINS = (1.0, 100.0)


@dataclasses.dataclass(frozen=True)
class Chain:
    """The settings of a chain; a field's choices are in `CHOICES`."""

    fill: str = "median"
    brighten: str = "mean"
    """`gain`: the same factor on linear light for all; `mean`: to a mean grey; `white`: a factor
    that makes the brightest white; `gamma`: a power for all; `gamma mean`: a power that leads to a
    mean grey; `clahe`: adaptive equalisation."""
    level: float = 0.45
    """The mean grey."""
    factor: float = 10.0
    """Of `gain`; the power of `gamma` is 1/log2 of it."""
    quantile: float = 0.999
    """Of `white`: the share of pixels whose brightest channel is below it."""
    clahe: float = 0.0
    """Clip limit of an adaptive equalisation after brightening; 0 is none."""
    denoise: str = "none"
    strength: float = 0.05


CHOICES: dict[str, tuple[Any, ...]] = {
    "brighten": ("gain", "mean", "white", "gamma", "gamma mean", "clahe"),
    "level": (0.3, 0.35, 0.38, 0.41, 0.44, 0.47, 0.5, 0.55),
    "factor": (3.0, 4.5, 6.0, 8.0, 10.0, 13.0, 17.0, 25.0),
    "quantile": (0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0),
    "clahe": (0.0, 0.002, 0.005, 0.01, 0.02, 0.05),
    "denoise": ("none", "tv", "bilateral", "nlm"),
    "strength": (0.01, 0.02, 0.035, 0.05, 0.08, 0.12, 0.2),
    "fill": ("median", "nearest", "biharmonic"),
}


def fill(low: np.ndarray, method: str) -> np.ndarray:
    """The picture in [0, 1], its lost pixels (all channels zero) guessed from their neighbours."""
    x, lost = low / 255, (low == 0).all(-1)
    if not lost.any() or lost.all():
        return x
    if method == "biharmonic":
        return np.clip(
            restoration.inpaint_biharmonic(x, lost, channel_axis=-1, split_into_regions=True), 0, 1
        )
    if method == "nearest":
        nearest = distance_transform_edt(lost, return_distances=False, return_indices=True)
        return x[tuple(cast(Any, nearest))]
    while lost.any():  # from the edges of what is lost inwards
        padded = np.pad(np.where(lost[..., None], np.nan, x), ((2, 2), (2, 2), (0, 0)))
        padded[:2], padded[-2:], padded[:, :2], padded[:, -2:] = (np.nan,) * 4
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (0, 1))
        known = np.pad(~lost, 2)
        reached = lost & np.lib.stride_tricks.sliding_window_view(known, (5, 5)).any((2, 3))
        x[reached] = np.nanmedian(windows[reached], (-2, -1))
        lost = lost & ~reached
    return x


def brighten(x: np.ndarray, chain: Chain) -> np.ndarray:
    """The picture brightened as `chain.brighten` says, in [0, 1]."""
    match chain.brighten:
        case "gain":
            x = with_gain(x, chain.factor)
        case "gamma":
            x = x ** (1 / np.log2(chain.factor))
        case "mean":
            x = with_gain(x, _root(lambda g: with_gain(x, g).mean() - chain.level, GAINS))
        case "white":
            white = np.quantile(x.max(-1), chain.quantile, keepdims=True)
            x = with_gain(x, _root(lambda g: with_gain(white, g).item() - 0.999, GAINS))
        case "gamma mean":
            x = x ** (1 / _root(lambda g: (x ** (1 / g)).mean() - chain.level, GAINS))
    clip = chain.clahe or (0.01 if chain.brighten == "clahe" else 0)
    return exposure.equalize_adapthist(x, clip_limit=clip) if clip else x


def with_gain(x: np.ndarray, gain: float) -> np.ndarray:
    """sRGB in [0, 1] times a factor on its linear light."""
    return np.clip(to_srgb(to_linear(x) * gain), 0, 1)


def _root(f: Callable[[float], float], bounds: tuple[float, float]) -> float:
    low, high = bounds
    if f(low) >= 0:
        return low
    return high if f(high) <= 0 else cast(float, brentq(f, low, high, xtol=1e-3))


def denoise(x: np.ndarray, chain: Chain) -> np.ndarray:
    match chain.denoise:
        case "tv":
            return restoration.denoise_tv_chambolle(x, chain.strength, channel_axis=-1)
        case "bilateral":
            return restoration.denoise_bilateral(
                x, sigma_color=chain.strength, sigma_spatial=1.5, channel_axis=-1
            )
        case "nlm":
            return restoration.denoise_nl_means(
                x, 5, 6, 0.8 * chain.strength, sigma=chain.strength, channel_axis=-1
            )
    return x


def apply(x: np.ndarray, chain: Chain) -> np.ndarray:
    return np.clip(denoise(brighten(x, chain), chain), 0, 1)


def apply_knowing(x: np.ndarray, gt: np.ndarray, chain: Chain) -> np.ndarray:
    """The chain with the gain that gives the highest PSNR: no program could know it."""

    def error(log_gain: float) -> float:
        return float(np.square(with_gain(x, np.exp(log_gain)) - gt / 255).mean())

    best = cast(Any, minimize_scalar(error, bounds=np.log(GAINS), method="bounded")).x
    chosen = dataclasses.replace(chain, brighten="gain", factor=float(np.exp(best)), clahe=0.0)
    return apply(x, chosen)


@functools.cache
def filled(low: Path, method: str) -> np.ndarray:
    return fill(read_photo(low).rgb, method)


def scores(pair: tuple[Path, Path], chain: Chain, knowing: bool = False) -> tuple[float, float]:
    """PSNR and SSIM of the chain's result, protocol `zmar`."""
    x, gt = filled(pair[0], chain.fill), read_photo(pair[1]).rgb
    result = apply_knowing(x, gt, chain) if knowing else apply(x, chain)
    found = score(result, gt)
    return found.psnr, found.ssim


def fill_scores(pair: tuple[Path, Path], method: str) -> tuple[float, float]:
    """The same of the ground truth, of which the lost pixels alone are guessed."""
    low, gt = (read_photo(path).rgb for path in pair)
    lost = (low == 0).all(-1, keepdims=True)  # the ground truth's own black pixels are not
    found = score(fill(np.where(lost, 0, np.maximum(gt, 1)), method), gt)
    return found.psnr, found.ssim


def mean_scores(
    pool: ProcessPoolExecutor, pairs: list[tuple[Path, Path]], chain: Chain, knowing: bool = False
) -> tuple[float, float]:
    return _mean(pool, functools.partial(scores, chain=chain, knowing=knowing), pairs)


def _mean(
    pool: ProcessPoolExecutor,
    of_pair: Callable[[tuple[Path, Path]], tuple[float, float]],
    pairs: list[tuple[Path, Path]],
) -> tuple[float, float]:
    psnr, ssim = np.mean(list(pool.map(of_pair, pairs, chunksize=4)), 0).tolist()
    return psnr, ssim


def tune(pool: ProcessPoolExecutor, pairs: list[tuple[Path, Path]]) -> Iterator[Chain]:
    """Better and better chains: one setting at a time, round after round, the best by PSNR."""
    chain = Chain()
    best, improved = mean_scores(pool, pairs, chain)[0], True
    while improved:
        improved = False
        for name, choices in CHOICES.items():
            for choice in track(choices, name, console=console, transient=True):
                tried = dataclasses.replace(chain, **{name: choice})
                if tried == chain or not _matters(tried, name):
                    continue
                psnr, _ = mean_scores(pool, pairs, tried)
                if psnr > best + 0.005:
                    chain, best, improved = tried, psnr, True
                    console.print(f"{psnr:.2f} dB: {chain}")
                    yield chain
    yield chain


def _matters(chain: Chain, name: str) -> bool:
    wanted = {
        "level": ("mean", "gamma mean"),
        "factor": ("gain", "gamma"),
        "quantile": ("white",),
    }
    if name == "strength":
        return chain.denoise != "none"
    return name not in wanted or chain.brighten in wanted[name]


def find_pairs(low: Path, gt: Path) -> list[tuple[Path, Path]]:
    """Pictures of the same relative name without suffix."""
    truths = {name.with_suffix(""): path for path, name in find_photos([gt])}
    pairs = []
    for path, name in find_photos([low]):
        if name.with_suffix("") not in truths:
            raise ValueError(f"{path}: no picture of this name in {gt}")
        pairs.append((path, truths[name.with_suffix("")]))
    return pairs


def main(
    *,
    tune_low: Path,
    tune_gt: Path,
    low: Path,
    gt: Path,
    tune_pictures: int = 40,
    workers: int = 2,
    json_file: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Tune and score.

    Args:
      tune_low: Degraded pictures to tune on.
      tune_gt: Their ground truth, same names.
      low: Degraded pictures to score.
      gt: Their ground truth.
      tune_pictures: How many pictures to tune on, evenly spaced.
      workers: Processes.
      json_file: Also write the result as JSON.
    """
    if tune_pictures < 1:
        console.print(f"error: --tune-pictures must be 1 or more, got {tune_pictures}", style="red")
        return 1
    try:
        every, pairs = find_pairs(tune_low, tune_gt), find_pairs(low, gt)
    except ValueError as e:
        console.print(f"error: {e}", style="red")
        return 1
    chosen = every[:: max(len(every) // tune_pictures, 1)][:tune_pictures]
    with ProcessPoolExecutor(workers) as pool:
        *_, chain = tune(pool, chosen)
        rows = {"classical chain": mean_scores(pool, pairs, chain)}
        rows["brightness from the ground truth"] = mean_scores(pool, pairs, chain, knowing=True)
        exact = (functools.partial(fill_scores, method=method) for method in CHOICES["fill"])
        rows["ground truth, lost pixels filled"] = max(_mean(pool, fn, pairs) for fn in exact)
    inputs = [score(read_photo(a).rgb, read_photo(b).rgb) for a, b in pairs]
    rows["input"] = tuple(np.mean([(s.psnr, s.ssim) for s in inputs], 0).tolist())
    print(f"{chain}, tuned on {len(chosen)}, scored on {len(pairs)} pictures\n")
    print("| | PSNR dB | SSIM |\n|---|---|---|")
    for name, (psnr, ssim) in rows.items():
        print(f"| {name} | {psnr:.2f} | {ssim:.3f} |")
    if json_file:
        content = {"chain": dataclasses.asdict(chain), "pictures": len(pairs), "scores": rows}
        write_whole(json_file, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
