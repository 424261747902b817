"""Trains the plain PyTorch model and zmar_jax side by side, and draws both losses.

Both start from the same weights and see the same batches and the same noise. The actnorms are set
from the first batch, by zmar_jax, before the comparison begins. A second PyTorch run starts from
weights that differ by one rounding: no two programs that round differently can stay closer than
that for long.

$ python scripts/compare_training.py
$ python scripts/compare_training.py --data my_pairs/ --config configs/night.yaml --steps 200

It needs `pip install 'zmar-jax[torch]' matplotlib` and a checkout.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tyro.conf import arg

from zmar_jax import torch_port
from zmar_jax.config import Config, ConfigError, MaskConfig, load_config, override
from zmar_jax.data.pipeline import make_loader
from zmar_jax.evaluate.pairs import Pairs, Source, kind_of, open_pairs
from zmar_jax.files.replacing import write_whole
from zmar_jax.imaging.exposure import as_seen
from zmar_jax.imaging.views import View
from zmar_jax.runtime import compilation
from zmar_jax.runtime.sharding import make_mesh, shard_batch
from zmar_jax.train import compile_steps
from zmar_jax.train.optimizer import learning_rate
from zmar_jax.train.state import create_sharded_state, state_of
from zmar_jax.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "configs" / "night.yaml"
"""The configuration that the bundled weights were trained with."""
RECIPE = (
    *("optimizer", "betas", "learning_rate", "schedule", "warmup_steps", "release_warmup"),
    *("weight_decay_encoder", "weight_decay_flow", "clip_norm", "weight_l1", "flow_warmup_steps"),
)
"""The settings of `train` that both optimizers follow."""
PLAIN = ("data.workers=0", "train.ema=null", "train.remat=none")
"""What changes no loss, and is not needed here."""
Batch = dict[str, np.ndarray]
"""`low` and `gt`, uint8, and `noise`, float32 in [-0.5, 0.5): [B, H, W, 3]."""
Curve = list[dict[str, float]]
"""What each step measured, before its update: loss, nll, perhaps l1, grad_norm."""


def compare(
    data: str | None = None,
    config: Path = BUNDLED,
    steps: int = 200,
    set: tuple[str, ...] = (),
    threads: int = 2,
    picture: Path = ROOT / "docs" / "torch_training.png",
    json_file: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Train both, compare, draw.

    Args:
      data: A folder of pairs, low/ and gt/; without it, the configuration's photographs: those
        that come with scikit-image, darkened, if it names none.
      config: A training configuration; `init` says where both begin, else at random weights.
      steps: Training steps.
      set: Changes of the configuration, as data.crop=64.
      threads: Of PyTorch; JAX takes all cores.
      picture: Where to draw.
      json_file: Where to write the numbers; beside the picture if not given.
    """
    missing = [name for name in ("torch", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"this needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if steps < 1 or threads < 1:
        raise ValueError("--steps and --threads must be 1 or more")
    chosen = checked(override(load_config(config), [*PLAIN, *set]))
    compilation.enable_cache()
    source = batches(chosen, data)
    first = next(source)
    params = initialised(chosen, first)
    taken = [next(source) for _ in range(steps)]
    print(f"{data or 'photographs'}, {config.name}, {steps} steps", file=sys.stderr)
    ours = run_jax(chosen, params, taken)
    # the batches are exposed already
    weights = torch_port.to_state_dict(params, dataclasses.replace(chosen.model, brightness=0.0))
    theirs = run_torch("PyTorch", chosen, weights, taken, threads)
    rounded = {key: np.nextafter(w, np.float32(np.inf)) for key, w in weights.items()}
    twin = run_torch("PyTorch, a rounding off", chosen, rounded, taken, threads)
    result = {
        **about(chosen, config, data, steps),
        "jax": columns(ours),
        "torch": columns(theirs),
        "torch_rounded": columns(twin),
        "difference": differences(ours, theirs, chosen),
        "difference_rounded": differences(twin, theirs, chosen),
    }
    numbers = json_file or picture.with_suffix(".json")
    for path in (numbers, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(numbers, json.dumps(result, indent=1) + "\n")
    draw(result, picture)
    print(table_of(result))
    return 0


def checked(config: Config) -> Config:
    """The configuration, if plain PyTorch can follow it."""
    wanted = {
        "model.policy": (config.model.policy, "float32"),
        "model.mask_attention": (config.model.mask_attention, True),
        "train.accumulate": (config.train.accumulate, 1),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(f"{name} must be {needed} to compare with PyTorch, got {found}")
    return config


def batches(config: Config, data: str | None) -> Iterator[Batch]:
    """Crops as the model sees them, with noise; the same at every call."""
    rng = np.random.default_rng(config.train.seed)
    if data is None:
        brightness = config.model.brightness
        crops: Iterator[Any] = make_loader(config.data, "train", brightness=brightness)
    else:
        crops = pair_crops(config, data, np.random.default_rng([config.data.seed, 1]))
    for batch in crops:
        noise = rng.random(batch["gt"].shape, np.float32) - np.float32(0.5)
        yield {"low": batch["low"], "gt": batch["gt"], "noise": noise}


def pair_crops(config: Config, data: str, rng: np.random.Generator) -> Iterator[Batch]:
    """Random crops of pairs, turned and mirrored."""
    if kind_of(data) != "pairs":
        raise ValueError(f"{data}: expected a folder of pairs, with subfolders low and gt")
    pairs, size = open_pairs(Source(data, masks=MaskConfig(source="none"))), config.data.crop
    small = [pairs.ids[i] for i, shape in enumerate(pairs.sizes) if min(shape) < size]
    if small:
        raise ValueError(f"{data}: smaller than the crop of {size}: {', '.join(small)}")
    while True:
        drawn = [_crop(config, pairs, rng) for _ in range(config.data.batch_size)]
        low, gt = (np.stack(kind) for kind in zip(*drawn, strict=True))
        yield {"low": low, "gt": gt}


def _crop(config: Config, pairs: Pairs, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    i, size = int(rng.integers(len(pairs.ids))), config.data.crop
    low, gt = pairs.read(i)
    assert gt is not None
    y, x = (int(rng.integers(n - size + 1)) for n in low.shape[:2])
    view = View(int(rng.integers(4)), bool(rng.integers(2)))
    seen = as_seen(low, config.model.brightness).image
    cut = [view.of(a[y : y + size, x : x + size]) for a in (seen, gt)]
    return cut[0], cut[1]


def initialised(config: Config, batch: Batch) -> Any:
    """The weights that both start from; a fresh run's first batch sets the actnorms."""
    mesh = make_mesh(devices=jax.devices()[:1])
    if config.train.init:
        weights = load_weights(Path(config.train.init))
        if weights.config != config.model:
            raise ValueError(
                f"{config.train.init}: weights of another model than the configuration"
            )
        return weights.params
    state = create_sharded_state(config, jax.random.key(config.train.seed), mesh)
    state = compile_steps(state, mesh)[0](state, shard_batch(batch, mesh), jax.random.key(0))
    return jax.tree.map(np.asarray, state.params)


def run_jax(config: Config, params: Any, taken: list[Batch]) -> Curve:
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    # the first iteration initialised
    state = state_of(config, params).replace(step=np.int32(1))
    state = jax.device_put(state, jax.devices()[0])
    program, curve = compile_steps(state, mesh)[1], []
    train_step: Any = None

    def step(batch: Batch) -> dict[str, float]:
        nonlocal state, train_step
        sharded = shard_batch(batch, mesh)
        train_step = train_step or program.compile(state, sharded, key)
        state, metrics = train_step(state, sharded, key)
        wanted = ("loss", "nll", "l1", "grad_norm", "learning_rate")
        return {name: float(metrics[name]) for name in wanted if name in metrics}

    for measured in timed("zmar_jax", step, taken):
        curve.append(measured)
    return curve


def run_torch(
    name: str, config: Config, weights: dict[str, np.ndarray], taken: list[Batch], threads: int
) -> Curve:
    import torch  # pyright: ignore[reportMissingImports]
    from torch_training import Training

    torch.set_num_threads(threads)
    tensors = {key: torch.from_numpy(np.array(a)) for key, a in weights.items()}
    recipe = dataclasses.asdict(config.train)
    training = Training(dataclasses.asdict(config.model), recipe, tensors)
    schedule, iteration = learning_rate(config.train), 0

    def step(batch: Batch) -> dict[str, float]:
        nonlocal iteration
        iteration += 1
        low, gt, noise = (
            torch.from_numpy(np.ascontiguousarray(batch[k].transpose(0, 3, 1, 2)))
            for k in ("low", "gt", "noise")
        )
        return training.step(low, gt, noise, iteration, float(schedule(iteration)))

    return list(timed(name, step, taken))


def timed(
    name: str, step: Callable[[Batch], dict[str, float]], taken: list[Batch]
) -> Iterator[dict[str, float]]:
    """Runs the steps, and says how far it is."""
    for i, batch in enumerate(taken, 1):
        start = time.perf_counter()
        measured = step(batch)
        seconds = time.perf_counter() - start
        if not all(map(np.isfinite, measured.values())):
            raise ValueError(f"{name}: step {i} is not finite; lower train.learning_rate")
        if i in (1, 2) or not i % 10 or i == len(taken):
            print(
                f"{name}: step {i} of {len(taken)}, loss {measured['loss']:.3f}, {seconds:.2f} s",
                file=sys.stderr,
                flush=True,
            )
        yield measured | {"seconds": seconds}


def columns(curve: Curve) -> dict[str, list[float]]:
    return {key: [measured[key] for measured in curve] for key in curve[0]}


def differences(found: Curve, torch: Curve, config: Config) -> list[float]:
    """|loss - PyTorch's|, relative to the sum of PyTorch's two parts, as the loss may pass zero."""
    return [
        abs(a["loss"] - b["loss"]) / (abs(b["nll"]) + config.train.weight_l1 * b.get("l1", 0))
        for a, b in zip(found, torch, strict=True)
    ]


def about(config: Config, file: Path, data: str | None, steps: int) -> dict[str, Any]:
    kind = Path(data).resolve().name if data else config.data.folder or "scikit-image's photographs"
    recipe = {name: getattr(config.train, name) for name in RECIPE}
    return {
        "data": kind,
        "config": file.name,
        "init": config.train.init or f"random, seed {config.train.seed}",
        "steps": steps,
        "batch": config.data.batch_size,
        "crop": config.data.crop,
        "recipe": recipe,
        "model": dataclasses.asdict(config.model),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "jax", "zmar-jax")
        },
        "cores": os.cpu_count(),
    }


def table_of(result: dict[str, Any]) -> str:
    """Losses and differences at some steps, and how long a step took."""
    ours, theirs, apart = result["jax"]["loss"], result["torch"]["loss"], result["difference"]
    lines = [
        f"{result['data']}, batch {result['batch']}, crop {result['crop']}, {result['config']}; "
        + ", ".join(f"{name} {value}" for name, value in result["recipe"].items()),
        "",
        "| step | PyTorch | zmar_jax | difference | largest so far | PyTorch a rounding off |",
        "|---|---|---|---|---|---|",
    ]
    shown = sorted({1, 2, 5, 10, 20, 50, 100, 150, 200, len(ours)})
    for n in (n for n in shown if n <= len(ours)):
        twin = max(result["difference_rounded"][:n])
        lines.append(
            f"| {n} | {theirs[n - 1]:.4f} | {ours[n - 1]:.4f} | {apart[n - 1]:.1e} "
            f"| {max(apart[:n]):.1e} | {twin:.1e} |"
        )
    medians = {name: np.median(result[name]["seconds"]) for name in ("torch", "jax")}
    lines += ["", f"Seconds a step, median: PyTorch {medians['torch']:.2f}, "]
    lines[-1] += f"zmar_jax {medians['jax']:.2f}."
    return "\n".join(lines)


def draw(result: dict[str, Any], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = np.arange(1, result["steps"] + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(steps, result["torch"]["loss"], color="tab:orange", linewidth=3, label="PyTorch")
    left.plot(steps, result["jax"]["loss"], color="black", linewidth=1, label="zmar_jax")
    left.set(xlabel="step", ylabel="training loss", title="same weights, batches and noise")
    off = result["difference_rounded"]
    right.semilogy(steps, off, color="grey", linewidth=1, label="PyTorch, weights a rounding off")
    right.semilogy(steps, result["difference"], color="black", linewidth=1, label="zmar_jax")
    right.set(xlabel="step", title="relative difference from PyTorch's loss")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main() -> int:
    try:
        return tyro.cli(compare, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, ConfigError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
