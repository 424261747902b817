"""Cycles of the machine code that libtpu schedules, of each instruction of a program.

XLA's cost model guesses how long an instruction takes, and knows nothing of Pallas kernels. libtpu
can follow the code that it makes bundle by bundle, through all turns of the loops in it and the
waits for memory, and writes the count beside the model's into the compiled text. An instruction
that occurs often is compiled and counted once. Nothing is run. Following takes time and memory by
the cycle: about 30 000 cycles a second of CPU and 2 kB each were seen, so that an instruction over
eight images of 160x160 takes minutes and gigabytes, and the same over one small image a second.
"""

import dataclasses
import multiprocessing
import os
import re
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from zmar_jax.benchmark.compile import Compiled, Say, Task, compile_for
from zmar_jax.benchmark.kept import kept
from zmar_jax.benchmark.topology import Slice
from zmar_jax.config import Config
from zmar_jax.runtime import memory

REPLACED = "without gathers, scatters and LU decompositions, of whose count libtpu dies"

_FLAG = "--xla_jf_dump_static_llo_profile_to"
_FLAGS = "LIBTPU_INIT_ARGS"
_ERRORS = "errors.txt"
LEAST_FREE = 2 << 30
"""Bytes that must stay free, for those who share the memory; with fewer, counting ends."""
_SHORT = "memory is short"


class ScheduleError(Exception):
    """libtpu died of a program when asked for its schedule, or took too much memory."""


def compile_scheduled(
    task: Task,
    config: Config,
    target: Slice,
    effort: float = 0.0,
    say: Say = lambda _: None,
) -> Compiled:
    """`compile_for`, with the schedule's cycles in `Compiled.hlo` (`hlo.Instruction.scheduled`).

    libtpu dies of counting some gathers and scatters, so all of them, and the LU decompositions
    that have some within, are replaced by sums of one element of each operand. They are small: of
    the published training step XLA gives them 0.2 % of the time. In a process of its own, as libtpu
    reads its flags once and the replacements stay. What it found is `kept`.

    Args:
      say: told where the program was found rather than compiled.

    Raises:
      ConfigError, TooLarge: as `compile_for`.
      ScheduleError: names the instruction of which libtpu died; or less than LEAST_FREE is left.
    """
    question = (task, config, target.name, effort)
    return kept(question, lambda: _compile(task, config, target, effort), say)


def _compile(task: Task, config: Config, target: Slice, effort: float) -> Compiled:
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, context, _prepare, (folder,)) as pool,
    ):
        try:
            found = pool.submit(compile_for, task, config, target, effort).result()
        except BrokenProcessPool as e:
            text = Path(folder, _ERRORS).read_text(errors="replace")
            raise ScheduleError(_reason(text)) from e
    return dataclasses.replace(found, remark=f"{found.remark}; {REPLACED}")


def _reason(errors: str) -> str:
    found = re.search(r"Static LLO profiling of (\S+) failed: (.*)", errors)
    if found:
        return f"libtpu cannot count the cycles of {found[1]} ({found[2]}); leave --cycles out"
    if "LLO_CHECK failure" in errors:
        return (
            "libtpu dies of counting this program's cycles (its own check of types, seen with "
            "products in bfloat16); try --policy float32, or leave --cycles out"
        )
    if _SHORT in errors:
        return (
            f"counting cycles took all memory but {LEAST_FREE >> 30} GiB; count them of a smaller "
            "program: --batch 1 --crop 40, or fewer blocks (model.blocks=[1,1,1,1])"
        )
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return f"the process that compiled for --cycles died ({last}); is there memory enough?"


def prepare(folder: str) -> None:
    """Makes this process one whose TPU programs have their schedule in their text.

    Args:
      folder: where libtpu may write files that nobody reads.
    """
    os.environ[_FLAGS] = f"{os.environ.get(_FLAGS, '')} {_FLAG}={folder}".strip()
    jax.config.update("jax_platforms", "cpu")
    replace_gathers()


def _prepare(folder: str) -> None:
    errors_to(folder)
    prepare(folder)
    memory.free()  # JAX must know its CPU before another thread asks
    threading.Thread(target=watch, daemon=True).start()


def watch() -> None:
    """Ends this process when memory is short."""
    while memory.free() > LEAST_FREE:
        time.sleep(0.5)
    os.write(2, f"{_SHORT}\n".encode())
    os._exit(1)


def errors_to(folder: str) -> None:
    """From here on standard error is a file; libtpu writes there why it dies."""
    os.dup2(os.open(Path(folder, _ERRORS), os.O_CREAT | os.O_WRONLY, 0o600), 2)


def replace_gathers() -> None:
    """Gathers and scatters of what is lowered for TPU from here on become sums of one element.

    For a process that compiles and runs nothing: their results are wrong.
    """
    for primitive in (lax.gather_p, lax.scatter_p, lax.scatter_add_p, lax.linalg.lu_p):
        mlir.register_lowering(primitive, _stand_in, platform="tpu")


def _stand_in(ctx: Any, *operands: Any, **_: Any) -> Any:
    def first_elements(*arrays: jax.Array) -> list[jax.Array]:
        ones = [lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(()) for x in arrays]
        outs = ctx.avals_out
        return [jnp.full(out.shape, sum(one.astype(out.dtype) for one in ones)) for out in outs]

    return mlir.lower_fun(first_elements, multiple_results=True)(ctx, *operands)
