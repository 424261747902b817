"""What the commands share: consoles, tables, progress bars, errors of the command line."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

# names of files may look like markup
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class UsageError(ValueError):
    """Arguments that contradict each other."""


def table_of(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


@contextlib.contextmanager
def progress(total: int, verb: str) -> Iterator[Callable[[Path, Path, Exception | None], None]]:
    """A progress bar; what it yields is called after each file, with its error or None."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(verb, total=total)

        def step(source: Path, target: Path, error: Exception | None) -> None:
            if error:
                bar.console.print(f"failed: {reason(source, error)}", style="red")
            bar.advance(task)

        yield step


def reason(source: Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.startswith(str(source)) else f"{source}: {text}"


def parse_bytes(option: str, text: str) -> int:
    """`16GiB`, `800MB` or a number of bytes."""
    units = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    units |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    match = re.fullmatch(r"(\d+\.?\d*) ?([A-Za-z]*)", text)
    size = float(match[1]) * units.get(match[2], 0) if match else 0
    if not 1 <= size < math.inf:
        raise UsageError(f"{option} must be an amount of memory, as 16GiB or 800MB, got {text!r}")
    return int(size)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made ({e.strerror}); choose another folder") from e


def range_of(option: str, text: str) -> tuple[float, float]:
    """The numbers of LOW:HIGH; whether they are a range, the configuration checks."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UsageError(f"{option} must be LOW:HIGH, as in 0.1:0.3, got {text!r}") from None
    return low, high


def check_seed(seed: int) -> None:
    """Raises UsageError where --seed is none."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be 0 or more and below 2**32, got {seed}")


def check_sampling(heat: float, samples: int, seed: int) -> None:
    """Raises UsageError where --heat, --samples or --seed are not what can be sampled."""
    if not 0 <= heat < math.inf:
        raise UsageError(f"--heat must be 0 or more, got {heat}")
    if samples < 1:
        raise UsageError(f"--samples must be 1 or more, got {samples}")
    if samples > 1 and heat == 0:
        raise UsageError("--samples above 1 needs --heat above 0, else all samples are the same")
    check_seed(seed)
