"""How `compile --breakdown` shows where the time goes."""

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.table import Table

from zmar_jax.benchmark.breakdown import PHASES, Piece, coverage, grouped, longest

LEAST = 0.005
"""Share of the time from which a row is shown on its own."""
HEAVIEST = 20

Key = Callable[[Piece], str]
Cycles = Callable[[Piece], int]


def tables(found: Sequence[Piece], clock: float, cycles: bool) -> Iterator[Table | str]:
    """Time by kind, by module whatever the level, by layer, and of the heaviest instructions.

    Each is as wide as it must be, also where the terminal is not.

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
        yield _whole(_by(name, key, found, clock, cycles))
    if cycles:
        yield _whole(_scheduled(found, clock))
    yield _whole(_heaviest(found, clock, cycles))
    if cycles:
        yield _covered(found, clock)


def _by(name: str, key: Key, found: Sequence[Piece], clock: float, cycles: bool) -> Table:
    schedule = ("schedule", "XLA of these") if cycles else ()
    table = _table(
        f"ms by {name}: XLA's estimate" + " and libtpu's schedule" * cycles,
        (name.partition(",")[0],),
        (*PHASES, "all", "share", "HBM GB", *schedule),
    )
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
    title = "ms by kind: libtpu's schedule, of what it covers"
    table = _table(title, ("kind",), (*PHASES, "all", "covers of XLA's estimate"))
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
    table = _table(
        "the heaviest instructions, ms of all turns",
        ("instruction", "kind", "phase", "layer", "result"),
        ("turns", "XLA", *(("schedule",) if cycles else ()), "HBM GB"),
    )
    for piece in sorted(found, key=lambda piece: -longest([piece]))[:HEAVIEST]:
        result = piece.result if len(piece.result) <= 44 else f"{piece.result[:41]}..."
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


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _whole(table: Table) -> Table:
    widths = (max(len(str(cell)) for cell in (c.header, *c.cells)) for c in table.columns)
    table.width = sum(widths) + 2 * len(table.columns) + 2
    return table


def _phases(group: Sequence[Piece], clock: float, cycles: Cycles) -> list[str]:
    return [_ms(sum(cycles(p) for p in group if p.phase == phase), clock) for phase in PHASES]


def _traffic(group: Sequence[Piece]) -> str:
    return f"{sum(piece.turns * piece.traffic for piece in group) / 1e9:.2f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _ms(cycles: float, clock: float) -> str:
    return f"{1e3 * cycles / clock:.2f}"
