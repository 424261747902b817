"""What a compiled program does, read off its HLO text: loops counted as often as they run.

`Compiled.cost_analysis()` counts the body of a loop once; here each instruction counts as often as
the loops around it turn. Nothing is run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from zmar_jax.benchmark.kernels import Kernels, estimate, kind_of, without_scratch

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective: how many a step, and the bytes of their arrays on one device."""

    kind: str
    count: int
    size: int


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """A step of a program on one device.

    `traffic` is bytes read from and written to HBM: what each instruction reads and writes there,
    padded to the tiles that TPUs store; of an array that an instruction slices, the slice. Where
    a GPU's L2 cache holds what a kernel reads, it is counted all the same.
    `cycles` is the sum of the cycles that XLA's cost model gives each instruction of a TPU program;
    `kernels`, the most traffic first, have the seconds that it gives those of a GPU program.
    """

    collectives: tuple[Collective, ...]
    traffic: int
    cycles: int
    kernels: tuple[Kernels, ...] = ()


def read_program(text: str) -> ProgramCost:
    """Reads `Compiled.as_text()` of a program for a TPU or a GPU.

    Raises:
      ValueError: no HLO, or a loop whose number of turns the text does not tell.
    """
    computations, entry = _parse(text)
    found: dict[str, list[int]] = {}
    kernels: dict[str, Kernels] = {}
    traffic = cycles = 0
    for computation, turns, fused in _reached(computations, entry):
        for ins in computation.values():
            kind = ins.op.removesuffix("-start")
            if kind in COLLECTIVES:
                total = found.setdefault(kind, [0, 0])
                total[0] += turns
                total[1] += turns * _collective_bytes(ins, computation)
            if not fused:
                moved = turns * _traffic(ins, computation, computations)
                _add_kernel(kernels, ins, computations, turns, moved)
                traffic += moved
                cycles += turns * ins.cycles
    collectives = (Collective(kind, *found[kind]) for kind in COLLECTIVES if kind in found)
    most = sorted(kernels.values(), key=lambda kernel: -kernel.traffic)
    return ProgramCost(tuple(collectives), traffic, cycles, tuple(most))


def _add_kernel(
    kernels: dict[str, Kernels],
    ins: "_Instruction",
    computations: "dict[str, _Computation]",
    turns: int,
    traffic: int,
) -> None:
    if not ins.runs:
        return
    inside = computations[ins.called("calls")].values() if ins.op == "fusion" else ()
    kind = kind_of(ins.op, ins.attributes, (part.attributes for part in inside))
    seconds = estimate(ins.attributes)
    old = kernels.get(kind, Kernels(kind, 0, 0, 0.0, 0))
    kernels[kind] = Kernels(
        kind,
        old.count + turns,
        old.traffic + traffic,
        old.estimated + turns * (seconds or 0.0),
        old.unestimated + (turns if seconds is None else 0),
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction that a program runs, `turns` times; `traffic` is of once, in bytes.

    `inside` is what is fused in it, `sources` its operands, through what only moves them, and
    `loop` the `op_name` of the loop around it, or empty.
    """

    instruction: "_Instruction"
    turns: int
    traffic: int
    inside: tuple["_Instruction", ...]
    sources: tuple["_Instruction", ...]
    loop: str


def runs(text: str) -> Iterator[Run]:
    """All that `Compiled.as_text()` of a TPU program runs, but what only waits or names.

    Raises:
      ValueError: no HLO, or a loop whose number of turns the text does not tell.
    """
    computations, entry = _parse(text)
    everything = (ins for computation in computations.values() for ins in computation.values())
    loops = {ins.called("body"): ins.op_name for ins in everything if ins.op == "while"}
    around = {id(computations[body]): name for body, name in loops.items()}
    for computation, turns, fused in _reached(computations, entry):
        for ins in () if fused else computation.values():
            if not ins.runs:
                continue
            yield Run(
                instruction=ins,
                turns=turns,
                traffic=_traffic(ins, computation, computations),
                inside=tuple(_inside(ins, computations)),
                sources=tuple(_sources(ins, computation)),
                loop=around.get(id(computation), ""),
            )


def _inside(
    ins: "_Instruction", computations: "dict[str, _Computation]"
) -> "Iterator[_Instruction]":
    if ins.op in ("fusion", "async-start"):
        for part in computations[ins.called("calls")].values():
            yield part
            yield from _inside(part, computations)


def _sources(ins: "_Instruction", computation: "_Computation") -> "Iterator[_Instruction]":
    for name in ins.operands:
        operand = computation.get(name)
        if operand is None:  # of a constant it is the value
            continue
        if operand.op in ("bitcast", "get-tuple-element", "copy", "copy-start", "copy-done"):
            yield from _sources(operand, computation)
        yield operand


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def cycles(self) -> int:
        """By XLA's cost model; 0 where it gives none."""
        return _cycles(self.attributes.partition(_SCHEDULE)[0])

    @functools.cached_property
    def scheduled(self) -> int:
        """By the schedule, where libtpu was asked for it (`schedule.py`); else, or unknown, 0."""
        return _cycles(self.attributes.partition(_SCHEDULE)[2])

    @functools.cached_property
    def op_name(self) -> str:
        """The path of modules and transforms that JAX traced it under; empty where XLA made it.

        The first where XLA made one instruction of several.
        """
        match = re.search(r'op_name="([^";]*)', self.attributes)
        return match[1] if match else ""

    @property
    def runs(self) -> bool:
        """Whether it does anything, rather than name, wait for, or call what does."""
        return self.op not in _FREE and not self.op.endswith(("-done", "-update"))

    def called(self, attribute: str) -> str:
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""


_Computation = dict[str, _Instruction]
_SCHEDULE = '"bundle_analysis_data":'


def _cycles(text: str) -> int:
    match = re.search(r'"estimated_cycles":"(\d+)"', text)
    return int(match[1]) if match else 0


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif ins := _instruction(line):
            current[ins.name] = ins
    if not entry:
        raise ValueError("expected the HLO text of a compiled program, found no ENTRY in it")
    return computations, entry


def _instruction(line: str) -> _Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    op, _, arguments = rest.partition("(")
    end = _closing("(" + arguments) - 1
    if op in ("parameter", "constant"):
        return _Instruction(match[2], shape, op, (arguments[:end],), "", bool(match[1]))
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments[:end]))
    return _Instruction(match[2], shape, op, operands, arguments[end + 1 :], bool(match[1]))


def _closing(text: str) -> int:
    """Where the parenthesis closes that opens `text`."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def _reached(
    computations: dict[str, _Computation], name: str, turns: int = 1, fused: bool = False
) -> Iterator[tuple[_Computation, int, bool]]:
    """Every computation that `name` runs, how often, and whether inside one instruction."""
    computation = computations[name]
    yield computation, turns, fused
    for ins in computation.values():
        match ins.op:
            case "while":
                times = turns * _turns(computations[ins.called("condition")], ins)
                yield from _reached(computations, ins.called("body"), times, fused)
            case "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", ins.attributes)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                names += filter(None, map(ins.called, ("true_computation", "false_computation")))
                for branch in names:
                    yield from _reached(computations, branch, turns, fused)
            case "call":
                yield from _reached(computations, ins.called("to_apply"), turns, fused)
            case "fusion" | "async-start":
                yield from _reached(computations, ins.called("calls"), turns, True)


def _turns(condition: _Computation, loop: _Instruction) -> int:
    """How often a loop turns: as XLA says, or else as one whose counter goes from 0 in ones."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    counts = [
        int(ins.operands[0])
        for ins in condition.values()
        if ins.op == "constant" and re.match(r"[su]32\[\]", ins.type)
    ]
    if len(counts) != 1:
        raise ValueError(f"cannot tell how often the loop {loop.name} turns: bounds {counts}")
    return counts[0]


_WIDTHS = {"pred": 1, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}


def _sizes(shape: str, hbm_only: bool = False) -> list[int]:
    """Bytes of each array of a type, padded to tiles; with `hbm_only` 0 where it lies elsewhere.

    `f32[8,80,80,6]{3,0,2,1:T(8,128)S(1)}` is stored with dimension 3 in lanes of 128 and
    dimension 0 in sublanes of 8, and lies in memory 1, which is on the chip; memory 0 is the HBM.
    """
    sizes = []
    for kind, dims, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?", shape):
        if kind not in _WIDTHS:
            continue
        order, _, marks = layout.partition(":")
        lengths = [int(d) for d in dims.split(",") if d]
        physical = [lengths[int(axis)] for axis in reversed(order.split(",")) if axis] or lengths
        if tile := re.match(r"T\(([\d,]+)\)", marks):
            tiles = [int(size) for size in tile[1].split(",")]
            for axis, size in zip(range(-len(tiles), 0), tiles, strict=True):
                if -axis <= len(physical):
                    physical[axis] = -(-physical[axis] // size) * size
        on_chip = hbm_only and re.search(r"S\([1-9]\d*\)", marks)
        sizes.append(0 if on_chip else _WIDTHS[kind] * math.prod(physical))
    return sizes


def _collective_bytes(ins: _Instruction, computation: _Computation) -> int:
    given = sum(sum(_sizes(computation[name].type)) for name in ins.operands)
    made = sum(_sizes(ins.type))
    # the start of a gather returns its operand beside its result
    return made - given if ins.op == "all-gather-start" else max(given, made)


_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "replica-id", "opt-barrier", "async-done"}


def _traffic(
    ins: _Instruction, computation: _Computation, computations: dict[str, _Computation]
) -> int:
    if not ins.runs:
        return 0
    reads = [sum(_sizes(computation[name].type, hbm_only=True)) for name in ins.operands]
    written = _sizes(ins.type, hbm_only=True)
    if ins.op == "fusion":
        inner = computations[ins.called("calls")]
        reads = [min(n, _read(inner, i)) for i, n in enumerate(reads)]
        written = [min(sum(written), _written(inner))]
    elif ins.op in ("slice-start", "dynamic-slice-start"):
        # its result is (operands, slice, state); the operand may lie in HBM
        place = len(ins.operands)
        reads = [min(reads[0], _sizes(ins.type)[place])]
        written = written[place : place + 1]
    elif ins.op == "custom-call":
        written = _sizes(without_scratch(ins.type, ins.attributes), hbm_only=True)
    elif ins.op.endswith("-start"):
        written = written[:1]
    elif ins.op in ("dynamic-slice", "slice", "gather"):
        reads = [min(sum(reads), sum(written))]
    elif ins.op == "dynamic-update-slice":
        reads, written = reads[1:2], reads[1:2]
    return sum(reads) + sum(written)


def _read(fused: _Computation, position: int) -> int:
    """Bytes that a fusion reads of its operand; of one that it only slices, the slices."""
    parameters = (ins for ins in fused.values() if ins.op == "parameter")
    mine = next(ins for ins in parameters if ins.operands == (str(position),))
    slices = _slices(fused, mine.name)
    return sum(_sizes(mine.type)) if slices is None else slices


def _slices(fused: _Computation, name: str) -> int | None:
    """Bytes of the slices of an array; None where it is read otherwise, too."""
    total = 0
    for user in (ins for ins in fused.values() if name in ins.operands):
        if user.op in ("dynamic-slice", "slice"):
            total += sum(_sizes(user.type))
        elif user.op == "bitcast" and (slices := _slices(fused, user.name)) is not None:
            total += slices
        elif user.op != "dynamic-update-slice" or user.operands[0] != name:
            return None
    return total


def _written(fused: _Computation) -> int:
    """Bytes that a fusion writes; of an array that it updates in place, the update."""
    root = next(ins for ins in fused.values() if ins.root)
    outputs = [fused[name] for name in root.operands] if root.op == "tuple" else [root]
    total = 0
    for output in outputs:
        made = output
        while made.op == "bitcast":
            made = fused[made.operands[0]]
        changed = fused[made.operands[1]] if made.op == "dynamic-update-slice" else output
        total += sum(_sizes(changed.type))
    return total
