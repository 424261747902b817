"""The modules of the PyTorch release, by the parameters that each has in Flax.

Everything follows from the key table: a module's name is what the keys of its tensors have in
common. So a new tensor in `keys.py` is a new layer here.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from zmar_jax.config import ModelConfig
from zmar_jax.torch_port.keys import Entry, Part, key_table

Place = tuple[str | int, ...]
"""Where parameters lie in a tree whose blocks and steps are lists (`models.notation.unstack`)."""
_LAST = "4"
"""The last of a coupling net, a Sequential; the convolutions before have their actnorm inside."""


class Layer(NamedTuple):
    """A published module; several where they return the same."""

    names: tuple[str, ...]
    channels: slice = slice(None)
    """Those of the module's output that this package computes."""


def layers(config: ModelConfig) -> dict[Place, Layer]:
    """The layer that belongs to the parameters, a dict or an array, at each place."""
    keys: dict[Place, list[str]] = {}
    rows: dict[Place, slice] = {}
    for entry, part, place in _placed(config):
        for depth in range(2, len(place) + 1):
            keys.setdefault(place[:depth], []).append(entry.key)
        if part.source and isinstance(part.source[0], slice):
            rows[place] = part.source[0]
    found = {}
    for place, tensors in keys.items():
        if names := _names(place, tensors):
            found[place] = Layer(names, rows.get(place, slice(None)))
    return found


def _placed(config: ModelConfig) -> Iterator[tuple[Entry, Part, Place]]:
    """Live tensors and where each lies; without those that several layers' convolutions share."""
    for entry in key_table(config):
        for part in entry.parts:
            path, index = part.path, part.target[0] if part.target else None
            shared = "condition" in path or "z1" in path
            if shared:
                continue
            stack = next((i for i, name in enumerate(path) if name in ("blocks", "step")), None)
            if stack is None:
                yield entry, part, path
            elif isinstance(index, int):
                kept = path[: stack + (path[stack] == "blocks")]
                yield entry, part, (*kept, index, *path[stack + 1 :])


def _names(place: Place, tensors: list[str]) -> tuple[str, ...]:
    """The modules whose output is the layer's; none where no module has it."""
    prefix = _prefix(tensors)
    if "coupling" in place:
        return _in_coupling(place, prefix)
    if place[-1] == "coupling" or (len(place) == 2 and place[0] == "flow"):
        return ()
    return (prefix.removesuffix(".body"),)


def _in_coupling(place: Place, prefix: str) -> tuple[str, ...]:
    inside = place[place.index("coupling") + 1 :]
    match inside:
        case (str(), "actnorm0" | "actnorm1"):
            return prefix, prefix.removesuffix(".actnorm")
        case (str(),):
            return f"{prefix}.{_LAST}", prefix
    return ()


def _prefix(keys: list[str]) -> str:
    """What the dotted names have in common, without the tensors' own names."""
    together = zip(*(key.split(".")[:-1] for key in keys), strict=False)
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, together)
    return ".".join(parts[0] for parts in same)
