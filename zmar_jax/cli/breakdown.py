"""How `compile --breakdown` shows where the time goes."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from zmar_jax.benchmark.breakdown import PHASES, Piece, coverage, grouped, longest

LEAST = 0.005
"""Share of the time from which a row is shown on its own."""
HEAVIEST = 20

Key = Callable[[Piece], str]
Cycles = Callable[[Piece], int]


def tables(found: Sequence[Piece], clock: float, cycles: bool) -> Iterator[Table | str]:
    """Time by kind, by module whatever the level, by layer, and of the heaviest instructions.

    Args:
      clock: cycles a second.
      cycles: whether to show libtpu's schedule, too.
    """
    keys: dict[str, Key] = {
        "kind": lambda piece: piece.kind,
        "module, all levels": lambda piece: piece.layer.rpartition("/")[2],
        "layer": lambda piece: piece.layer,
    }
    for name, key in keys.items():
        yield _by(name, key, found, clock, cycles)
    if cycles:
        yield _scheduled(found, clock)
    yield _heaviest(found, clock, cycles)
    if cycles:
        yield _covered(found, clock)


def _by(name: str, key: Key, found: Sequence[Piece], clock: float, cycles: bool) -> Table:
    table = Table(title=f"ms by {name}: XLA's estimate" + " and libtpu's schedule" * cycles)
    table.add_column(name.partition(",")[0])
    schedule = ("schedule", "XLA of these") if cycles else ()
    for column in (*PHASES, "all", "share", "HBM GB", *schedule):
        table.add_column(column, justify="right")
    whole, small = longest(found), []

    def add(label: str, group: Sequence[Piece]) -> None:
        total = sum(piece.all_cycles for piece in group)
        cells = [*_phases(group, clock, lambda piece: piece.all_cycles), _ms(total, clock)]
        cells += [_share(total, sum(piece.all_cycles for piece in found)), _traffic(group)]
        if cycles:
            covered = coverage(group)
            cells += [_ms(covered.scheduled, clock), _ms(covered.estimated, clock)]
        table.add_row(label, *cells)

    for label, group in grouped(found, key).items():
        if longest(group) < LEAST * whole and name != "kind":
            small += group
        else:
            add(label, group)
    if small:
        add(f"others, {len(set(map(key, small)))}", small)
    table.add_section()
    add("all", found)
    return table


def _scheduled(found: Sequence[Piece], clock: float) -> Table:
    table = Table(title="ms by kind: libtpu's schedule, of what it covers")
    table.add_column("kind")
    for column in (*PHASES, "all", "covers of XLA's estimate"):
        table.add_column(column, justify="right")
    groups = grouped(found, lambda piece: piece.kind)
    for label, group in {**groups, "all": list(found)}.items():
        if label == "all":
            table.add_section()
        cells = _phases(group, clock, lambda piece: piece.all_scheduled)
        covered = coverage(group)
        known = _share(covered.estimated, covered.estimated + covered.without)
        table.add_row(label, *cells, _ms(covered.scheduled, clock), known)
    return table


def _heaviest(found: Sequence[Piece], clock: float, cycles: bool) -> Table:
    table = Table(title="the heaviest instructions, ms of all turns")
    for name in ("instruction", "kind", "phase", "layer", "result"):
        table.add_column(name, overflow="fold")
    for name in ("turns", "XLA", *(("schedule",) if cycles else ()), "HBM GB"):
        table.add_column(name, justify="right")
    for piece in sorted(found, key=lambda piece: -longest([piece]))[:HEAVIEST]:
        result = piece.result if len(piece.result) <= 60 else f"{piece.result[:57]}..."
        cells = [piece.name, piece.kind, piece.phase, piece.layer, result, str(piece.turns)]
        cells.append("-" if piece.cycles is None else _ms(piece.all_cycles, clock))
        if cycles:
            cells.append("-" if piece.scheduled is None else _ms(piece.all_scheduled, clock))
        table.add_row(*cells, _traffic([piece]))
    return table


def _covered(found: Sequence[Piece], clock: float) -> str:
    covered = coverage(found)
    return (
        f"libtpu's schedule covers {covered.share:.1%} of XLA's estimate: "
        f"{_ms(covered.scheduled, clock)} ms where XLA says {_ms(covered.estimated, clock)} ms. "
        f"With XLA's {_ms(covered.without, clock)} ms of the rest: "
        f"{_ms(covered.scheduled + covered.without, clock)} ms."
    )


def _phases(group: Sequence[Piece], clock: float, cycles: Cycles) -> list[str]:
    return [_ms(sum(cycles(p) for p in group if p.phase == phase), clock) for phase in PHASES]


def _traffic(group: Sequence[Piece]) -> str:
    return f"{sum(piece.turns * piece.traffic for piece in group) / 1e9:.2f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _ms(cycles: float, clock: float) -> str:
    return f"{1e3 * cycles / clock:.2f}"
