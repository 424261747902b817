"""The command line: arguments, tables and progress bars; the work is done elsewhere."""

import io
import sys
from collections.abc import Sequence

import tyro

from zmar_jax.cli.benchmark import benchmark
from zmar_jax.cli.compile import compile_
from zmar_jax.cli.console import UsageError, err
from zmar_jax.cli.evaluate import evaluate
from zmar_jax.cli.mask import mask
from zmar_jax.cli.prepare import prepare
from zmar_jax.cli.restore import restore
from zmar_jax.cli.score import score
from zmar_jax.cli.train import train
from zmar_jax.cli.weights import convert, info

app = tyro.extras.SubcommandApp()
for command in (restore, convert, info, mask, prepare, train, evaluate, score):
    app.command(command)
app.command(name="compile")(compile_)
app.command(benchmark, name="benchmark", help="Time the project's programs on this machine.")


def main(args: Sequence[str] | None = None) -> int:
    """Runs `zmar-jax`; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # as stderr does: names of files need not be text that the terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app.cli(
            prog="zmar-jax",
            description="Low-light restoration with ZMAR-SNFlow in JAX.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except Exception as e:
        if not (message := _message(e)):
            raise
        err.print(f"error: {message}", style="red")
        return 1
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    return code or 0


def _message(error: Exception) -> str | None:
    """What to tell the user; None of an error that is a mistake of this program."""
    from jax.errors import JaxRuntimeError

    from zmar_jax.checkpoint import CheckpointError
    from zmar_jax.config import ConfigError
    from zmar_jax.data import DataError
    from zmar_jax.evaluate.records import EvaluationError
    from zmar_jax.images import ImageError
    from zmar_jax.memory import MemoryLimitError
    from zmar_jax.torch_port import WeightsError
    from zmar_jax.train import TrainingError

    users = (
        *(UsageError, CheckpointError, ConfigError, DataError, ImageError),
        *(EvaluationError, MemoryLimitError, TrainingError, WeightsError),
    )
    if isinstance(error, users):
        return str(error)
    if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"a device is out of memory ({str(error).splitlines()[0]}); lower the batch "
            "(data.batch_size or --batch), the crop (data.crop) or the pictures' size, or train "
            "with train.remat=reversible"
        )
    return None
