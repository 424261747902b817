"""How `compile --breakdown` shows where the time goes."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from zmar_jax.benchmark.breakdown import PHASES, Piece, grouped

LEAST = 0.005
"""Share of the time from which a row is shown on its own."""
HEAVIEST = 20


def tables(found: Sequence[Piece], clock: float) -> Iterator[Table]:
    """Time by kind, by module whatever the level, by layer, and of the heaviest instructions."""
    for title, key in (
        ("kind", lambda piece: piece.kind),
        ("module, all levels", lambda piece: piece.layer.rpartition("/")[2]),
        ("layer", lambda piece: piece.layer),
    ):
        yield _by(title, key, found, clock)
    yield _heaviest(found, clock)


def _by(title: str, key: Callable[[Piece], str], found: Sequence[Piece], clock: float) -> Table:
    table = Table(title=f"ms by {title}, XLA's estimate")
    table.add_column(title.partition(",")[0])
    for name in (*PHASES, "all", "share", "HBM GB"):
        table.add_column(name, justify="right")
    whole, small = _cycles(found), []
    for name, group in grouped(found, key).items():
        if _cycles(group) < LEAST * whole and key(group[0]) != group[0].kind:
            small += group
        else:
            table.add_row(name, *_cells(group, whole, clock))
    if small:
        table.add_row(f"others, {len({key(p) for p in small})}", *_cells(small, whole, clock))
    table.add_section()
    table.add_row("all", *_cells(found, whole, clock))
    return table


def _cells(group: Sequence[Piece], whole: int, clock: float) -> Iterator[str]:
    for phase in PHASES:
        yield _ms(_cycles([p for p in group if p.phase == phase]), clock)
    yield _ms(_cycles(group), clock)
    yield f"{_cycles(group) / max(whole, 1):.1%}"
    yield f"{sum(p.turns * p.traffic for p in group) / 1e9:.2f}"


def _heaviest(found: Sequence[Piece], clock: float) -> Table:
    table = Table(title="the heaviest instructions, ms of all turns by XLA's estimate")
    for name in ("instruction", "kind", "phase", "layer", "result"):
        table.add_column(name, overflow="fold")
    for name in ("turns", "ms", "HBM GB"):
        table.add_column(name, justify="right")
    for piece in sorted(found, key=lambda piece: -piece.all_cycles)[:HEAVIEST]:
        result = piece.instruction.type
        table.add_row(
            *(piece.name, piece.kind, piece.phase, piece.layer),
            result if len(result) <= 60 else f"{result[:57]}...",
            str(piece.turns),
            _ms(piece.all_cycles, clock),
            f"{piece.turns * piece.traffic / 1e9:.2f}",
        )
    return table


def _cycles(group: Sequence[Piece]) -> int:
    return sum(piece.all_cycles for piece in group)


def _ms(cycles: float, clock: float) -> str:
    return f"{1e3 * cycles / clock:.2f}"
