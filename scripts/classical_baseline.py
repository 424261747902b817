"""The best restoration of dark photographs that classical filters can make, with or without lost
pixels.

Fills what is lost, balances the colours, brightens, denoises. Every setting is tuned on one set of
pictures, one setting after the other until nothing improves, and scored on another. `--tune` and
`--data` are what `zmar-jax evaluate --data` takes, with the same lost pixels. More rows tell what
limits it: the chain with the brightness chosen per picture from its ground truth; and, where pixels
are lost, the ground truth itself, neither dark nor noisy, with these pixels filled.

$ python scripts/classical_baseline.py --tune photos/train --data photos/val --json baseline.json
$ python scripts/classical_baseline.py --tune pairs/a --data pairs/b --masks none --csv scores.csv
"""

import csv
import dataclasses
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, cast

import cv2
import numpy as np
import tyro
from classical_chain import CHOICES, Chain, apply, apply_knowing, fill
from rich.console import Console
from rich.progress import track
from tyro.conf import arg

from zmar_jax.config import MaskConfig
from zmar_jax.data import DataError
from zmar_jax.evaluate.pairs import Pairs, Source, kind_of, open_pairs
from zmar_jax.evaluate.table import csv_text
from zmar_jax.files.replacing import write_whole
from zmar_jax.imaging.images import ImageError
from zmar_jax.imaging.metrics import score

console = Console(stderr=True)
Scores = list[tuple[float, float]]
"""PSNR and SSIM of each picture."""


@functools.cache
def opened(source: Source) -> Pairs:
    """Of each process; one that is forked has its parent's."""
    cv2.setNumThreads(1)
    return open_pairs(source)


@functools.lru_cache(80)
def pair(source: Source, i: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture `i` in [0, 1] with its lost pixels filled, and its ground truth."""
    low, gt = opened(source).read(i)
    return fill(low, method).astype(np.float32), cast(np.ndarray, gt)


def scores(i: int, source: Source, chain: Chain, knowing: bool = False) -> tuple[float, float]:
    """PSNR and SSIM of the chain's result, protocol `zmar`."""
    x, gt = pair(source, i, chain.fill)
    found = score(apply_knowing(x, gt, chain) if knowing else apply(x, chain), gt)
    return found.psnr, found.ssim


def fill_scores(i: int, source: Source, method: str) -> tuple[float, float]:
    """The same of the ground truth, of which the lost pixels alone are guessed."""
    low, gt = cast(tuple[np.ndarray, np.ndarray], opened(source).read(i))
    lost = (low == 0).all(-1, keepdims=True)  # the ground truth's own black pixels are not
    found = score(fill(np.where(lost, 0, np.maximum(gt, 1)), method), gt)
    return found.psnr, found.ssim


def input_scores(i: int, source: Source) -> tuple[float, float]:
    low, gt = cast(tuple[np.ndarray, np.ndarray], opened(source).read(i))
    found = score(low, gt)
    return found.psnr, found.ssim


def tune(evaluate: Callable[[Chain], float], chain: Chain, names: Iterable[str] = ()) -> Chain:
    """The best chain by PSNR that changing one setting at a time leads to; of `names`, or any."""
    best, improved = evaluate(chain), True
    while improved:
        improved = False
        for name in names or CHOICES:
            for choice in track(CHOICES[name], name, console=console, transient=True):
                tried = dataclasses.replace(chain, **{name: choice})
                if tried == chain or not _matters(tried, name):
                    continue
                psnr = evaluate(tried)
                if psnr > best + 0.005:
                    chain, best, improved = tried, psnr, True
                    console.print(f"{psnr:.2f} dB: {chain}")
    return chain


def _matters(chain: Chain, name: str) -> bool:
    wanted = {
        "level": ("mean", "gamma mean", "gain gamma", "log mean"),
        "factor": ("gain", "gamma", "gain gamma"),
        "quantile": ("white",),
    }
    if name == "strength":
        return chain.denoise != "none"
    return name not in wanted or chain.brighten in wanted[name]


def measure(
    pool: ProcessPoolExecutor, source: Source, chain: Chain, gamma: Chain
) -> dict[str, Scores]:
    """What the rows of the table are means of."""

    def every(of_picture: Callable[..., tuple[float, float]], **options: Any) -> Scores:
        call = functools.partial(of_picture, source=source, **options)
        return list(pool.map(call, range(len(opened(source).ids)), chunksize=4))

    rows = {"input": every(input_scores), "one gamma curve": every(scores, chain=gamma)}
    rows["classical chain"] = every(scores, chain=chain)
    rows["brightness from the ground truth"] = every(scores, chain=chain, knowing=True)
    if source.masks.source != "none":
        filled = (every(fill_scores, method=method) for method in CHOICES["fill"])
        rows["ground truth, lost pixels filled"] = max(filled, key=_mean)
    return rows


def _mean(found: Scores) -> tuple[float, float]:
    psnr, ssim = np.mean(found, 0).tolist()
    return psnr, ssim


def table_of(ids: Iterable[str], rows: dict[str, Scores]) -> str:
    """CSV: PSNR and SSIM of each row, a picture a line."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["id", *(f"{name}: {what}" for name in rows for what in ("psnr", "ssim"))])
    for id_, *found in zip(ids, *rows.values(), strict=True):
        lines.writerow([csv_text(id_), *(number for both in found for number in both)])
    return text.getvalue()


def main(
    *,
    tune_data: Annotated[str, arg(name="tune")],
    data: str,
    masks: str | None = None,
    start: Chain = Chain(),  # noqa: B008
    tune_pictures: int = 40,
    workers: int = 2,
    json_file: Annotated[Path | None, arg(name="json")] = None,
    csv_file: Annotated[Path | None, arg(name="csv")] = None,
) -> int:
    """Tune and score.

    Args:
      tune_data: Pictures to tune on: a folder of pairs or of clean photographs, which are darkened.
      data: Pictures to score, likewise.
      masks: Lost pixels of both: procedural, none or a folder of masks. If not given, photographs
        lose some and pairs none.
      start: The chain that tuning starts from.
      tune_pictures: How many pictures to tune on, evenly spaced.
      workers: Processes.
      json_file: Also write the result as JSON.
      csv_file: Also write the scores of each picture as CSV.
    """
    try:
        if tune_pictures < 1 or workers < 1:
            raise ValueError("--tune-pictures and --workers must be 1 or more")
        tuned, scored = (_source(name, masks) for name in (tune_data, data))
        every, ids = len(opened(tuned).ids), opened(scored).ids
    except (DataError, ImageError, ValueError) as e:
        console.print(f"error: {e}", style="red", soft_wrap=True)
        return 1
    chosen = range(every)[:: max(every // tune_pictures, 1)][:tune_pictures]
    with ProcessPoolExecutor(workers) as pool:

        def psnr(chain: Chain) -> float:
            call = functools.partial(scores, source=tuned, chain=chain)
            return _mean(list(pool.map(call, chosen, chunksize=4)))[0]

        gamma = tune(psnr, Chain(fill="none"), ["level"])
        chain = tune(psnr, start)
        rows = measure(pool, scored, chain, gamma)
    print(f"{chain}, tuned on {len(chosen)}, scored on {len(ids)} pictures\n")
    print("| | PSNR dB | SSIM |\n|---|---|---|")
    means = {name: _mean(found) for name, found in rows.items()}
    for name, (psnr_mean, ssim) in means.items():
        print(f"| {name} | {psnr_mean:.2f} | {ssim:.3f} |")
    if json_file:
        chains = {"chain": dataclasses.asdict(chain), "gamma": dataclasses.asdict(gamma)}
        content = {**chains, "pictures": len(ids), "scores": means}
        write_whole(json_file, json.dumps(content, indent=2) + "\n")
    if csv_file:
        write_whole(csv_file, table_of(ids, rows))
    return 0


def _source(data: str, masks: str | None) -> Source:
    default = "procedural" if kind_of(data) == "photographs" else "none"
    return Source(data, masks=MaskConfig(source=masks or default))


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
