"""What the commands share: consoles, tables, progress bars, errors of the command line."""

import contextlib
import math
import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from zmar_jax.files.places import Place, PlaceError, local, place
from zmar_jax.runtime import restarts, stop
from zmar_jax.runtime.opening import open_path

# names of files may look like markup
out: Console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err: Console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


paths: tyro.constructors.ConstructorRegistry = tyro.constructors.ConstructorRegistry()
"""How the command line reads a path: `~` is the home folder also where no shell has said so. An
argument of type `Path` is of this machine, one of type `Place` may be a URL."""


@paths.primitive_rule
def _expanded(type_info: Any) -> tyro.constructors.PrimitiveConstructorSpec | None:
    if type_info.type is Path:
        read, metavar = local, "PATH"
    elif type_info.type in (Place, Place | None):
        read, metavar = place, "PATH|URL"
    else:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: _read(read, args[0]),
        is_instance=lambda x: isinstance(x, Path | str | None),
        str_from_instance=lambda path: [str(path)],
    )


def _read(read: Callable[[str], Place], text: str) -> Place:
    try:
        return read(text)
    except PlaceError as e:  # tyro would show a ValueError in a frame, without its name
        raise PlaceRefused(str(e)) from e


class PlaceRefused(Exception):
    """A place that cannot be used, out of tyro's reach."""


class UsageError(ValueError):
    """Arguments that contradict each other."""


def table_of(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


@contextlib.contextmanager
def progress(
    total: int,
    verb: str,
    put: Callable[[], None] = lambda: None,
    shown: Callable[[str], str] = lambda text: text,
) -> Iterator[Callable[[Path, Path, Exception | None], None]]:
    """A progress bar; what it yields is called after each file, with its error or None.

    It calls `put` then, which puts the file where it belongs if that is not here; `shown` gives
    errors the names that the user knows.
    That is where Ctrl-C ends the command, by KeyboardInterrupt: what is done is written whole.
    """
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(verb, total=total)

        def step(source: Path, target: Path, error: Exception | None) -> None:
            if error:
                bar.console.print(f"failed: {shown(reason(source, error))}", style="red")
            put()
            bar.advance(task)
            stop.stop_if_asked()

        yield step


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """In the block Python's warnings, as of other libraries, come without where they are from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: err.print(
            f"warning: {' '.join(str(message).split())}", style="yellow"
        )
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In the block Ctrl-C asks the command to end (`runtime.stop`), a second ends it at once."""

    def tell() -> None:
        err.print("stopping when this picture or step is done; Ctrl-C again ends at once")

    def end(code: int) -> None:
        err.show_cursor(True)  # which a progress bar hides
        os._exit(code)

    with stop.second_ends(tell, end), stop.remembered(signal.SIGINT):
        yield


def end_without(why: str, joined: bool = True) -> None:
    """Ends this process, as another one of its run has gone: any other way out waits for that one.

    Args:
      joined: whether this process had found the others.
    """
    import jax

    from zmar_jax.runtime.coordination import BEAT

    err.print(f"error: {why}", style="red")
    if joined and jax.process_index() == 0:
        time.sleep(3 * BEAT)  # the others ask this one who has gone
    os._exit(restarts.LOST)


@contextlib.contextmanager
def with_the_others(
    coordinator: str | None, processes: int | None, process: int | None
) -> Iterator[None]:
    """Joins this process to its run's others; where one of them goes in the block, all end.

    Raises:
      UsageError, ConfigError: options that do not fit each other.
    """
    from zmar_jax.runtime import sharding
    from zmar_jax.runtime.processes import HostLostError, ending_with_the_others

    if coordinator and (processes is None or process is None):
        raise UsageError("--coordinator needs --processes and --process")
    joined = False
    try:
        sharding.initialize_distributed(coordinator, processes, process)
        joined = True
        with ending_with_the_others(end_without):
            yield
    except HostLostError as e:
        end_without(str(e), joined)


def reason(source: Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.startswith(str(source)) else f"{source}: {text}"


def memory_limit(text: str | None) -> int | None:
    """Bytes of --memory; None where it is not given."""
    from zmar_jax.restore.memory import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except ValueError as e:
        raise UsageError(f"--{e}") from e


def check_folder(folder: Place) -> None:
    """Raises UsageError where what is to become a folder is named like a file."""
    from zmar_jax.imaging.outputs import names_file

    if isinstance(folder, Path) and names_file(folder):
        raise UsageError(f"{folder}: is to be a folder; name one, or make this one first")


def say_source(checkpoint: Place | None, source: str) -> None:
    """Says which weights these are where a file or a run has several (`weights.Weights.source`)."""
    if source != "weights":
        err.print(f"{checkpoint}: {source}")


def link(place: Place) -> Text:
    """The path, which terminals that know links open when it is clicked; or the URL."""
    if isinstance(place, str):
        return Text(place)
    return Text(str(place), style=f"link {place.absolute().as_uri()}")


def check_open(open_: bool, target: Place) -> None:
    """Raises UsageError where --open is to show what goes to a bucket."""
    if open_ and isinstance(target, str):
        raise UsageError(f"--open shows files of this machine, and {target} is in a bucket")


def show(path: Path) -> None:
    """Opens a file or a folder for --open, or says that nothing here does."""
    if not open_path(path):
        err.print(f"--open: nothing here shows files; look at {path}")


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


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of --size HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if not match or min(map(int, match.groups())) < 16:
        raise UsageError(f"--size must be HEIGHTxWIDTH of at least 16x16, as 400x600; got {text}")
    return int(match[1]), int(match[2])


def check_devices(devices: int) -> None:
    """Raises UsageError where --devices is not a number of devices that this host has."""
    import jax

    if not 1 <= devices <= (most := len(jax.local_devices())):
        raise UsageError(f"--devices must be 1 to {most}, which this host has, got {devices}")


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
