"""Which state dict a file holds: within whatever wrappers, under whatever prefix.

A tensor of the model is known by its name, `RRDB.` or `flowUpsamplerNet.` somewhere in it. So what
stands before that is a prefix, and where such tensors lie is a state dict, whatever a framework
calls them. Beside them only `BRIGHTNESS` under the same prefix is the model's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from zmar_jax.files.errors import few
from zmar_jax.torch_port.pickles import ONLY_STATE, OddKey, Tensor, WeightsError, shown
from zmar_jax.torch_port.settings import BRIGHTNESS

_PART = re.compile(r"(?:^|(?<=\.))(?:RRDB|flowUpsamplerNet)\.")
# what DataParallel and torch.compile put before a module's name, at any place
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
_AVERAGED = re.compile(r"(?:^|[._])ema(?:$|[._])")
# of other networks, whose tensors are not known by name
_NESTS = (
    *("state_dict", "params_ema", "params", "state_dict_ema", "model_ema", "ema"),
    *("model_state_dict", "model", "netG", "generator", "net"),
)
_DEEPEST = 8
_TOP = "."
"""The name, for `key`, of the object itself."""


@dataclass(frozen=True)
class _Candidate:
    """A state dict: its tensors without `prefix`, unchecked, and its name for `key`."""

    name: str
    prefix: str
    tensors: dict[str, Any]


def select(saved: Any, key: str | None = None) -> tuple[dict[str, Any], str]:
    """The state dict in what was saved, and in words which one, where that had to be decided.

    Of several the averaged one is taken, else the first; those that lack tensors come last.

    Args:
      saved: a dict, of dicts, tensors (`Tensor` or arrays) and whatever else.
      key: the name of one of several.

    Raises:
      WeightsError: none, none of that name, or not all in it are tensors.
    """
    if type(saved) is not dict:
        raise WeightsError(f"expected a state dict, found {shown(saved)}; {ONLY_STATE}")
    found = [candidate for at, nest in _nests(saved) for candidate in _candidates(at, nest)]
    if not found and key is None:
        return _of_another_network(saved), ""
    whole = max((len(candidate.tensors) for candidate in found), default=0)

    def rank(candidate: _Candidate) -> tuple[bool, bool]:
        return len(candidate.tensors) < whole, not _AVERAGED.search(candidate.name)

    names = few([shown(candidate.name) for candidate in found])
    wanted = [candidate for candidate in found if key in (None, candidate.name)]
    if not wanted:
        raise WeightsError(f"holds no state dict {shown(key)}; expected one of {names or 'none'}")
    chosen = min(wanted, key=rank)
    for name, value in chosen.tensors.items():
        if not _is_tensor(value):
            raise _no_tensor(name, value)
    said = f"{shown(chosen.name)} of {names} (--key picks)" if len(found) > 1 else ""
    without = f"prefix {shown(chosen.prefix)} taken off the keys" if chosen.prefix else ""
    return chosen.tensors, "; ".join(filter(None, (said, without)))


def _nests(saved: dict) -> Iterator[tuple[tuple[str, ...], dict]]:
    """All dicts, outermost first, with the keys that lead there; each once."""
    queue: list[tuple[tuple[str, ...], dict]] = [((), saved)]
    seen = {id(saved)}
    for at, nest in queue:
        yield at, nest
        for key, value in nest.items():
            inside = type(value) is dict and type(key) is str and len(at) < _DEEPEST
            if inside and id(value) not in seen:
                seen.add(id(value))
                queue.append(((*at, key), value))


def _candidates(at: tuple[str, ...], nest: dict) -> list[_Candidate]:
    """The state dicts in a dict, one for each prefix before the names of the model's tensors."""
    groups: dict[str, _Candidate] = {}
    beside: list[tuple[str, str, Any]] = []
    for key, value in nest.items():
        if type(key) is not str or _is_extra(key):
            continue
        plain = _WRAPPER.sub("", key)
        if not (part := _PART.search(plain)):
            if plain.endswith(BRIGHTNESS):  # else an epoch, another network, ...
                beside.append((key, plain, value))
        elif type(value) is not dict:  # those are looked into
            prefix = plain[: part.start()]
            if prefix not in groups:
                name = ".".join([*at, *filter(None, [prefix.rstrip(".")])]) or _TOP
                groups[prefix] = _Candidate(name, key[: _start(key)], {})
            _add(groups[prefix].tensors, plain[part.start() :], key, value)
    for key, plain, value in beside:
        group = groups.get(plain.removesuffix(BRIGHTNESS))
        if group and _is_tensor(value):
            _add(group.tensors, BRIGHTNESS, key, value)
    return [group for group in groups.values() if any(map(_is_tensor, group.tensors.values()))]


def _start(key: str) -> int:
    """Where the model's name of a tensor begins."""
    match = _PART.search(key)
    return match.start() if match else 0


def _add(tensors: dict[str, Any], name: str, key: str, value: Any) -> None:
    if name in tensors:
        raise WeightsError(f"holds both {shown(key)} and {shown(name)}; remove one of them")
    tensors[name] = value


def _of_another_network(saved: dict) -> dict[str, Any]:
    """The dict itself, or the first below one of the usual names; without DataParallel's prefix."""
    nested = (saved.get(name) for name in _NESTS)
    state = next((found for found in nested if type(found) is dict), saved)
    tensors: dict[str, Any] = {}
    for key, value in state.items():
        if type(key) is OddKey:
            raise WeightsError(f"holds a dict with the key {key.shown}; {ONLY_STATE}")
        if type(key) is str and _is_extra(key):
            continue
        if type(key) is not str or not _is_tensor(value):
            raise _no_tensor(key, value)
        name = key.removeprefix("module.")
        _add(tensors, name, f"module.{name}", value)
    return tensors


def _is_tensor(value: Any) -> bool:
    return type(value) is Tensor or isinstance(value, np.ndarray)


def _is_extra(key: str) -> bool:
    """Whether PyTorch calls it so what a module saves beside its tensors."""
    return key.rpartition(".")[2] == "_extra_state"


def _no_tensor(key: Any, value: Any) -> WeightsError:
    return WeightsError(
        f"expected a tensor under each key, found {shown(value)} under {shown(key)}; {ONLY_STATE}"
    )
