"""Where a compiled TPU program spends its time: instruction by instruction, off its HLO text.

Each instruction is given a layer and a phase, from the path of Flax modules and JAX transforms that
it was traced under, and a kind, from what it does. Nothing is run.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from zmar_jax.benchmark.hlo import COLLECTIVES, Run, runs

Phase = Literal["forward", "recomputed", "backward", "rest"]
PHASES: tuple[Phase, ...] = ("forward", "recomputed", "backward", "rest")
Kind = Literal["products", "sums", "loops", "copies", "prefetches", "kernels", "collectives"]
OUTSIDE = "(outside of layers)"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One instruction that a step runs, `turns` times; the numbers are of one run on one device.

    `result` is its type, and `layer` the path of Flax modules, as `encoder/refinement/blocks/ffn`,
    or OUTSIDE. Of `phase`, "forward" is also what is no gradient, "rest" what is outside of layers:
    losses, optimizer. Of `kind`, "products" have a matrix product, "sums" a reduction and no
    product, "copies" move and convert only, "prefetches" are copies beside other instructions,
    "kernels" are written in Pallas, and "loops" are all other loops over pixels. `cycles` are those
    of XLA's cost model, None where it gives none, as of prefetches, collectives and kernels.
    `scheduled` are those of libtpu's schedule, None where it gives none or was not asked for.
    `traffic` is in bytes.
    """

    name: str
    result: str
    layer: str
    phase: Phase
    kind: Kind
    turns: int
    cycles: int | None
    scheduled: int | None
    traffic: int

    @property
    def all_cycles(self) -> int:
        """Cycles of all turns, by XLA's cost model; 0 where it gives none."""
        return self.turns * (self.cycles or 0)

    @property
    def all_scheduled(self) -> int:
        """Cycles of all turns, by libtpu's schedule; 0 where it gives none."""
        return self.turns * (self.scheduled or 0)


def pieces(text: str) -> list[Piece]:
    """All that `Compiled.as_text()` of a TPU program runs.

    Raises:
      ValueError: no HLO, or a loop whose number of turns the text does not tell.
    """
    return [
        Piece(
            run.instruction.name,
            run.instruction.type,
            *_place(_path(run)),
            _kind(run),
            run.turns,
            run.instruction.cycles or None,
            run.instruction.scheduled or None,
            run.traffic,
        )
        for run in runs(text)
    ]


def grouped(found: Iterable[Piece], key: Callable[[Piece], str]) -> dict[str, list[Piece]]:
    """The pieces by `key`, that which takes longest first, by the longer of the two counts."""
    groups: dict[str, list[Piece]] = collections.defaultdict(list)
    for piece in found:
        groups[key(piece)].append(piece)
    order = sorted(groups, key=lambda name: -longest(groups[name]))
    return {name: groups[name] for name in order}


def longest(group: Iterable[Piece]) -> int:
    """Cycles of a group by XLA's cost model or by the schedule, whichever has more."""
    counts = [(piece.all_cycles, piece.all_scheduled) for piece in group]
    return max(map(sum, zip(*counts, strict=True)))


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What libtpu's schedule says, and of how much; cycles of all turns on one device.

    `scheduled` is by the schedule, `estimated` by XLA's cost model of the same instructions, and
    `without` by the model of those of which the schedule says nothing.
    """

    scheduled: int
    estimated: int
    without: int

    @property
    def share(self) -> float:
        """Of XLA's estimate, that of the instructions that the schedule covers; 0 to 1."""
        return self.estimated / max(self.estimated + self.without, 1)


def coverage(found: Iterable[Piece]) -> Coverage:
    scheduled = estimated = without = 0
    for piece in found:
        scheduled += piece.all_scheduled
        if piece.scheduled is None:
            without += piece.all_cycles
        else:
            estimated += piece.all_cycles
    return Coverage(scheduled, estimated, without)


def rows(found: Iterable[Piece], clock: float) -> list[dict[str, Any]]:
    """The pieces summed by layer, phase and kind, for JSON; `clock` is in cycles a second.

    `estimated_seconds` are XLA's; `scheduled_seconds` are the schedule's, of instructions of which
    XLA says `scheduled_estimated_seconds`.
    """
    key = lambda piece: "\n".join((piece.layer, piece.phase, piece.kind))  # noqa: E731
    summed = []
    for group in grouped(found, key).values():
        covered = coverage(group)
        seconds = {
            "estimated_seconds": covered.estimated + covered.without,
            "scheduled_seconds": covered.scheduled,
            "scheduled_estimated_seconds": covered.estimated,
        }
        summed.append(
            {name: getattr(group[0], name) for name in ("layer", "phase", "kind")}
            | {"instructions": len(group)}
            | {name: cycles / clock for name, cycles in seconds.items()}
            | {"hbm_traffic": sum(piece.turns * piece.traffic for piece in group)}
        )
    return summed


def _path(run: Run) -> str:
    """The instruction's path; where XLA made it, that of what is fused, its operands, or the loop.

    XLA names some after the path within the loop's body alone.
    """
    for group in ((run.instruction,), run.inside, run.sources):
        names = [ins.op_name for ins in group if _layer(ins.op_name) != OUTSIDE]
        if names:
            path = collections.Counter(names).most_common(1)[0][0]
            return path if path.startswith("jit(") or not run.loop else f"{run.loop}/body/{path}"
    return f"{run.loop}/body" if _layer(f"{run.loop}/body") != OUTSIDE else ""


def _place(path: str) -> tuple[str, Phase]:
    layer = _layer(path)
    if layer == OUTSIDE:
        return layer, "rest"
    if "rematted_computation" in path:
        return layer, "recomputed"
    return layer, "backward" if "transpose(" in path else "forward"


_JAX = re.compile(
    r"while|body|scan|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation"
    r"|custom_vjp_call|custom_jvp_call|[A-Z].*|.*[(>].*|"
)
"""Parts of a path that name no module: transforms, einsums, and the model, a class."""
_DIRECTIONS = ("forward", "inverse")


def _layer(path: str) -> str:
    """`jit(f)/jvp(Model)/encoder/while/body/blocks/blocks._feed/ffn/mul`: `encoder/blocks/ffn`.

    A method that is no module's main one stays, as in `attn.sums`.
    """
    modules: list[str] = []
    for part in path.split("/")[:-1]:
        module, _, method = part.partition(".")
        if _JAX.fullmatch(module):
            continue
        public = method and not method.startswith("_") and method not in _DIRECTIONS
        if modules and modules[-1].partition(".")[0] == module:
            if public:
                modules[-1] = part
        else:
            modules.append(part if public else module)
    return "/".join(modules) or OUTSIDE


_MOVES = {"copy", "transpose", "reshape", "bitcast", "slice", "pad", "concatenate", "reverse"}
_MOVES |= {"broadcast", "convert", "dynamic-slice", "dynamic-update-slice", "gather", "tuple"}
_MOVES |= {"parameter", "constant", "get-tuple-element", "bitcast-convert", "iota", "fusion"}


def _kind(run: Run) -> Kind:
    op = run.instruction.op
    if op.removesuffix("-start") in COLLECTIVES:
        return "collectives"
    if op in ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"):
        return "prefetches"
    if 'custom_call_target="tpu_custom_call"' in run.instruction.attributes:
        return "kernels"
    ops = {op, *(ins.op for ins in run.inside)}
    if ops & {"convolution", "dot"}:
        return "products"
    if ops & {"reduce", "reduce-window"}:
        return "sums"
    return "copies" if ops <= _MOVES else "loops"
