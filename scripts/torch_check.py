"""Holds the PyTorch module to the golden files of the release (model.md section 10)."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch_encoder import Sizes
from torch_model import ZmarSNFlow, network_input

from zmar_jax.config import PRESETS

CONDITIONS = ("fea_up2", "fea_up1", "fea_up0")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The largest error of a quantity of a golden file, and what is allowed."""

    case: str
    quantity: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for nan


def check(golden: Any, preset: str, device: str) -> Iterator[Finding]:
    """Every finding: the small model's, and the published model's where that is the preset.

    Args:
      golden: the module tests/golden.py.
      device: "cpu" or "cuda", `compare_jobs.prepare`d.
    """
    yield from _gradients(golden, device)
    full = golden.FULL_CASES if preset == "zmar_snflow" else {}
    for case, (name, seed) in (golden.CASES | full).items():
        model, arrays = _model(golden, name, seed, device), _tensors(golden.load(case), device)
        with torch.inference_mode():
            yield from _outputs(case, model, arrays, 1e-4 if name == "tiny" else 2e-3)


def _model(golden: Any, preset: str, seed: int, device: str) -> ZmarSNFlow:
    model = ZmarSNFlow(Sizes.of(dataclasses.asdict(PRESETS[preset])))
    tensors = {k: torch.from_numpy(a) for k, a in golden.state_dict(preset, seed).items()}
    model.load_state_dict(tensors, strict=True)
    return model.to(device)


def _tensors(arrays: dict[str, np.ndarray], device: str) -> dict[str, Any]:
    return {k: torch.from_numpy(a.astype(np.float32)).to(device) for k, a in arrays.items()}


def _outputs(case: str, model: ZmarSNFlow, g: dict[str, Any], pixel: float) -> Iterator[Finding]:
    image = g["lr"], g["mask"]
    for name, found in zip(CONDITIONS, model.RRDB(*image), strict=True):
        # the published model's file holds a corner and the deviations
        whole = f"enc/{name}" in g
        expected = g[f"enc/{name}" if whole else f"enc_crop/{name}"]
        std = expected.std() if whole else g[f"enc_std/{name}"][:, :, None, None]
        corner = found[:, :, : expected.shape[2], : expected.shape[3]]
        yield Finding(case, name, _worst(corner, expected, std), 1e-4)
    z, logdet, nll = model(g["gt"], *image, g["noise"])
    dequantization = math.log(32) * math.prod(g["gt"].shape[2:])
    yield Finding(case, "z", _worst(z, g["z"], g["z"].std()), 1e-4)
    yield Finding(case, "logdet", _worst(logdet, g["logdet"], dequantization), 1e-5)
    yield Finding(case, "nll", _worst(nll, g["nll"], g["nll"].abs()), 1e-5)
    for name, latent in (("heat0", 0 * g["z_in"]), ("heat", g["heat"] * g["z_in"])):
        x, logdet = model.reverse(latent, *image)
        reverse = f"logdet_reverse_{name}"
        yield Finding(case, f"x_{name}", _worst(x, g[f"x_{name}"]), pixel)
        yield Finding(case, reverse, _worst(logdet, g[reverse], dequantization), 1e-5)


def _gradients(golden: Any, device: str) -> Iterator[Finding]:
    case = "tiny_gradients"
    model, g = _model(golden, "tiny", 3, device), _tensors(golden.load(case), device)
    loss = model(g["gt"], *network_input(g["low"]), g["noise"])[2].mean()
    loss.backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    norms = {k.removeprefix("norm/"): e for k, e in g.items() if k.startswith("norm/")}
    values = {k.removeprefix("grad/"): e for k, e in g.items() if k.startswith("grad/")}
    if found.keys() != norms.keys():
        differ = ", ".join(sorted(found.keys() ^ norms.keys()))
        raise ValueError(f"{case}.npz and the module disagree on what has a gradient: {differ}")
    errors = [_worst(found[k].double().norm(), e, e) for k, e in norms.items()]
    yield Finding(case, "loss", _worst(loss.detach(), g["loss"], g["loss"]), 1e-5)
    yield Finding(case, "norms of gradients", max(errors), 1e-4)
    errors = [float((found[k] - e).norm() / e.norm()) for k, e in values.items()]
    yield Finding(case, "gradients", max(errors), 1e-4)


def _worst(found: Any, expected: Any, unit: Any = 1.0) -> float:
    return float(((found.double() - expected.double()).abs() / unit).max())
