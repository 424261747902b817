"""The command line: arguments, tables and progress bars; the work is done elsewhere.

Imports: benchmark, config, data, demo, deploy, evaluate, files, imaging, restore, runtime,
torch_port, train, weights.
"""

import contextlib
import importlib.metadata
import io
import platform
import re
import sys
from collections.abc import Sequence

import tyro

from zmar_jax.cli.benchmark import benchmark
from zmar_jax.cli.compare import compare
from zmar_jax.cli.compile import compile_
from zmar_jax.cli.console import (
    PlaceRefused,
    UsageError,
    err,
    interruptible,
    out,
    paths,
    warnings_in_one_line,
)
from zmar_jax.cli.demo import demo
from zmar_jax.cli.doctor import doctor
from zmar_jax.cli.evaluate import evaluate
from zmar_jax.cli.export import export
from zmar_jax.cli.mask import mask
from zmar_jax.cli.prepare import prepare
from zmar_jax.cli.restore import restore
from zmar_jax.cli.score import score
from zmar_jax.cli.train import train
from zmar_jax.cli.weights import convert, info
from zmar_jax.runtime import stop

app: tyro.extras.SubcommandApp = tyro.extras.SubcommandApp()
_COMMANDS = (
    *(restore, convert, info, mask, prepare, train, evaluate, score),
    *(compare, export, demo, doctor),
)
for _command in _COMMANDS:
    app.command(_command)
app.command(name="compile")(compile_)
app.command(benchmark, name="benchmark", help="Time the project's programs on this machine.")


def main(args: Sequence[str] | None = None) -> int:
    """Runs `zmar-jax`; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # as stderr does: names of files need not be text that the terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    args = sys.argv[1:] if args is None else args
    if list(args) == ["--version"]:
        out.print(_versions())
        return 0
    if list(args)[:1] == ["--tyro-print-completion"]:
        return _print_completion(args)
    try:
        with interruptible(), warnings_in_one_line():
            code = _cli(args)
            stop.stop_if_asked()  # a command without pictures has had no place to end early
    except Exception as e:
        if not (message := _message(e)):
            raise
        err.print(f"error: {message}", style="red")
        return _code(e)
    except KeyboardInterrupt:
        err.print("interrupted")
        return stop.INTERRUPTED
    return code or 0


def _cli(args: Sequence[str]) -> int | None:
    return app.cli(
        prog="zmar-jax",
        description="Low-light restoration with ZMAR-SNFlow in JAX. --version tells which one.",
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=paths,
    )


def _print_completion(args: Sequence[str]) -> int:
    """Prints tyro's script for a shell, in which a help text of two lines would be two words."""
    script, spec = io.StringIO(), re.compile(r"^COMPLETION_SPEC = .*$", re.M)
    try:
        with contextlib.redirect_stdout(script):
            return _cli(args) or 0
    finally:
        print(spec.sub(lambda line: line[0].replace(r"\n", " "), script.getvalue()), end="")


def _versions() -> str:
    """What a bug report should begin with."""
    packages = (f"{name} {importlib.metadata.version(name)}" for name in ("zmar-jax", "jax"))
    return ", ".join([*packages, f"Python {platform.python_version()}"])


def _code(error: Exception) -> int:
    """What schedulers read: 2 where hosts were started differently (`train` has more codes)."""
    from zmar_jax.runtime.processes import HostsDifferError

    return 2 if isinstance(error, HostsDifferError) else 1


def _message(error: Exception) -> str | None:
    """What to tell the user; None of an error that is a mistake of this program."""
    from jax.errors import JaxRuntimeError

    from zmar_jax.config import ConfigError
    from zmar_jax.data import DataError
    from zmar_jax.demo.errors import DemoError
    from zmar_jax.deploy.archive import ExportError
    from zmar_jax.evaluate.records import EvaluationError
    from zmar_jax.files.places import PlaceError
    from zmar_jax.imaging.images import ImageError
    from zmar_jax.runtime.devices import missing_devices
    from zmar_jax.runtime.memory import MemoryLimitError
    from zmar_jax.runtime.processes import ProcessError
    from zmar_jax.torch_port import WeightsError
    from zmar_jax.train import TrainingError
    from zmar_jax.weights.checkpoint import CheckpointError

    users = (
        *(UsageError, CheckpointError, ConfigError, DataError, ImageError),
        *(DemoError, EvaluationError, ExportError, MemoryLimitError, PlaceError, PlaceRefused),
        *(ProcessError, TrainingError, WeightsError),
    )
    if missing := missing_devices(error):
        return missing
    if isinstance(error, users):
        return str(error)
    if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"a device is out of memory ({str(error).splitlines()[0]}); lower the batch "
            "(data.batch_size or --batch), the crop (data.crop) or the pictures' size, or train "
            "with train.remat=reversible"
        )
    return None
