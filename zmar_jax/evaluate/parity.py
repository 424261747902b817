"""What PyTorch computed, layer by layer, beside what this package computes from the same inputs.

`scripts/dump_activations.py` writes what PyTorch computed: an .npz file of arrays as PyTorch has
them (NCHW), float32:

```
input/NAME     lr and mask, and z or gt and noise: which of the two says the direction
layer/NAME#N   what the module NAME returned when it was called for the Nth time, from 0
output         the first thing that the whole returned: the picture, or the latent
about          JSON: {"format": 1, "dtypes": {name of an array: its dtype in PyTorch}}
```
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zmar_jax.config import ModelConfig
from zmar_jax.evaluate.records import EvaluationError
from zmar_jax.files.errors import few
from zmar_jax.files.places import local
from zmar_jax.models import ZmarSNFlow, reference
from zmar_jax.models.notation import unstack
from zmar_jax.models.watching import watched
from zmar_jax.runtime import compilation
from zmar_jax.torch_port.layers import Layer, layers
from zmar_jax.weights import Weights

TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Differences that rounding explains after some forty layers, by the coarsest dtype of a dump."""
_INPUTS = {"inverse": ("lr", "mask", "z"), "forward": ("lr", "mask", "gt", "noise")}
_FORMAT = 1


class Row(NamedTuple):
    """A layer that both computed."""

    name: str
    difference: float
    """Largest |PyTorch - here|, in root mean squares of what PyTorch had; NaN, infinite where one
    of them is not finite or the shapes differ."""
    diverged: bool


class Dump(NamedTuple):
    """What PyTorch had: the arrays of a file, by name, and their dtypes there."""

    arrays: Mapping[str, np.ndarray]
    dtypes: Mapping[str, str]
    path: Path

    @property
    def direction(self) -> str:
        return "inverse" if "input/z" in self.arrays else "forward"

    @property
    def tolerance(self) -> float:
        """Of `TOLERANCES` the largest whose dtype there is."""
        return max(TOLERANCES.get(dtype, 0.0) for dtype in {*self.dtypes.values(), "float32"})


def read_dump(path: str | Path) -> Dump:
    """Reads a file of `scripts/dump_activations.py`.

    Raises:
      EvaluationError: it cannot be read, or lacks the inputs.
    """
    path = local(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about", "{}")))
        version, dtypes = about.get("format"), about.get("dtypes", {})
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as e:
        raise EvaluationError(
            f"{path}: cannot be read as activations ({e}); write it with "
            "scripts/dump_activations.py"
        ) from e
    if version != _FORMAT:
        raise EvaluationError(
            f"{path}: is no file of activations of format {_FORMAT}; write it with "
            "scripts/dump_activations.py of this version"
        )
    dump = Dump(arrays, dtypes, path)
    lacking = [n for n in _INPUTS[dump.direction] if f"input/{n}" not in arrays]
    if lacking or not any(name.startswith("layer/") for name in arrays):
        what = f"the inputs {few(lacking)}" if lacking else "layers"
        raise EvaluationError(f"{path}: lacks {what}; give them to dump_activations.recording")
    return dump


def compare(
    weights: Weights,
    dump: Dump,
    tolerance: float | None = None,
    done: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Computes what PyTorch computed, from the same inputs, and compares each layer.

    The plain reference computes, float32, one published layer after the other, on what it computed
    itself before: so the first difference is where the two part. The last row but one is the whole
    result, and the last that of the fast form, by which everything else restores.

    Args:
      tolerance: above which a layer has diverged; None takes the dump's own.
      done: called with each row, in the order of computing.

    Raises:
      EvaluationError: the inputs do not fit the model, or no layer has a name of the release.
    """
    allowed = dump.tolerance if tolerance is None else tolerance
    inputs = {n: _nhwc(dump.arrays[f"input/{n}"]) for n in _INPUTS[dump.direction]}
    _check(inputs, weights.config, dump)
    rows: list[Row] = []
    calls: dict[str, int] = {}

    def add(name: str, found: Any, expected: np.ndarray, shown: str | None = None) -> None:
        difference = largest_difference(_nchw(found), expected)
        rows.append(Row(shown or name, difference, not difference <= allowed))
        done(rows[-1])

    opened, known = _opened(weights)

    def tell(arguments: tuple[Any, ...], result: Any) -> None:
        layer = next((known[id(a)] for a in arguments if id(a) in known), None)
        if layer is None:
            return
        array = result[0] if isinstance(result, tuple) else result
        for name in layer.names:
            nth = calls.get(name, 0)
            calls[name] = nth + 1
            expected = dump.arrays.get(f"layer/{name}#{nth}")
            if expected is not None:
                again = f", call {nth + 1}" if nth else ""
                add(name, array, _computed(expected, layer), name + again)

    with watched(tell):
        result = _run(opened, weights.config, inputs, dump.direction)
    if not rows:
        raise EvaluationError(
            f"{dump.path}: no layer has a name of the release, as RRDB.patch_embed.proj; dump a "
            "module with the published names"
        )
    if "output" in dump.arrays:
        add("output", result, dump.arrays["output"])
        add("output of the fast form", _fast(weights, inputs, dump), dump.arrays["output"])
    return rows


def first_divergence(rows: list[Row]) -> Row | None:
    """The first row, in the order of computing, that differs by more than was allowed."""
    return next((row for row in rows if row.diverged), None)


def not_compared(dump: Dump, rows: list[Row]) -> list[str]:
    """Modules of the dump whose result this package does not have by itself."""
    compared = {row.name.partition(",")[0] for row in rows}
    names = (name.removeprefix("layer/") for name in dump.arrays if name.startswith("layer/"))
    return list(dict.fromkeys(n for name in names if (n := name.split("#")[0]) not in compared))


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """As `Row.difference`."""
    if found.shape != expected.shape:
        return float("inf")
    wide, error = expected.astype(np.float64), found.astype(np.float64)
    error = np.abs(error - wide).max()
    unit = np.sqrt(np.square(wide).mean())
    return float(error / unit) if unit else (float("inf") if error else 0.0)


def _opened(weights: Weights) -> tuple[Any, dict[int, Layer]]:
    """The parameters, with lists of blocks and steps; and the layer of each dict and array there,
    by its identity, by which the reference's functions are told apart."""
    encoder = {
        name: {"blocks": unstack(stage["blocks"])} if "blocks" in stage else stage
        for name, stage in weights.params["encoder"].items()
    }
    flow = reference.open_flow(weights.params["flow"])
    tree = {"encoder": encoder, "flow": flow}
    named = {"encoder": encoder} | {"flow": {f"level{i}": x for i, x in enumerate(flow, 1)}}
    found = layers(weights.config)
    places = {id(part): found[at] for at, part in _walk(named, ()) if at in found}
    return tree, places


def _walk(tree: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield place, tree
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, child in children if isinstance(tree, dict | list) else ():
        yield from _walk(child, (*place, name))


def _run(opened: Any, config: ModelConfig, inputs: Mapping[str, Any], direction: str) -> Any:
    conditions = reference.encode(opened["encoder"], config, inputs["lr"], inputs["mask"])
    if direction == "inverse":
        return reference.flow_inverse(opened["flow"], config, inputs["z"], conditions)[0]
    x = reference.dequantize(config, inputs["gt"], inputs["noise"])
    return reference.flow_forward(opened["flow"], config, x, conditions)[0]


def _fast(weights: Weights, inputs: Mapping[str, Any], dump: Dump) -> Any:
    model = ZmarSNFlow(weights.config)

    def run(params: Any, inputs: Mapping[str, Any]) -> Any:
        image = (inputs["lr"], inputs["mask"])
        first = inputs.get("z")
        if first is None:
            first = reference.dequantize(weights.config, inputs["gt"], inputs["noise"])
        return model.apply({"params": params}, first, *image, method=dump.direction)[0]

    return compilation.jit(run)(weights.params, inputs)


def _check(inputs: Mapping[str, Any], config: ModelConfig, dump: Dump) -> None:
    """Raises EvaluationError where the arrays are not inputs of this model."""
    if config.levels != reference.LEVELS:
        raise EvaluationError(f"a model of {config.levels} levels has no published names")
    shape = inputs["lr"].shape
    b, height, width, _ = shape if len(shape) == 4 else (0, 0, 0, 0)
    expected = {
        "lr": (b, height, width, 3),
        "mask": (b, height, width, 1),
        "gt": (b, height, width, 3),
        "noise": (b, height, width, 3),
        "z": (b, *config.latent_shape(height, width)),
    }
    for name, array in inputs.items():
        if array.shape != expected[name]:
            raise EvaluationError(
                f"{dump.path}: input/{name} does not fit lr, {shape} (NHWC): expected "
                f"{expected[name]}, got {array.shape}"
            )
    if config.padded(height, width) != (height, width) or min(height, width) < config.smallest:
        raise EvaluationError(
            f"{dump.path}: pictures must have multiples of {config.stride} pixels and at least "
            f"{config.smallest} on each edge, got {height}x{width}"
        )


def _computed(expected: np.ndarray, layer: Layer) -> np.ndarray:
    return expected[:, layer.channels] if expected.ndim == 4 else expected


def _nhwc(array: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(array, np.float32), 1, -1))


def _nchw(array: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
