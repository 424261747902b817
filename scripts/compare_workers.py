"""One process per framework: it loads the weights once and then runs when it is told to.

Each framework has its own process because their thread pools compete in a shared one, and
because the peak memory of a process is then the framework's. Neither imports the other.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from compare_jobs import Run, Setting, jax_job, torch_job


class WorkerError(ValueError):
    """A worker could not do what it was told."""


class Worker:
    """A started process, its first run (which compiles) behind it.

    Raises:
      WorkerError: the framework's own words, or how the process ended.
    """

    def __init__(self, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.setting = setting
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setting), daemon=True)
        self._process.start()
        theirs.close()
        self.first_call, self.device = self._answer()

    def run(self) -> Run:
        """Once more."""
        return self._ask("run")

    def output(self) -> np.ndarray:
        """Restored pixels [B, H, W, 3], or the loss of every train step so far."""
        return self._ask("output")

    def peak(self) -> int:
        """The most memory held so far, bytes: the process's on a CPU, else the GPU's."""
        return self._ask("peak")

    def stop(self) -> None:
        """Ends the process, and waits until it holds no memory any more.

        It notices that nobody will tell it anything more.
        """
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()

    def _ask(self, command: str) -> Any:
        # one that is gone answers nothing, which says more than that it does not listen
        with contextlib.suppress(OSError):
            self._pipe.send(command)
        return self._answer()

    def _answer(self) -> Any:
        try:
            problem, value = self._pipe.recv()
        except (EOFError, OSError) as e:
            self._process.join()
            code = self._process.exitcode
            raise WorkerError(
                f"{self.setting.name}: its process ended with exit code {code}"
                + ("; out of memory? try a smaller size or batch" if code == -9 else "")
            ) from e
        if problem:
            self.stop()
            raise WorkerError(f"{self.setting.name}: {problem}")
        return value


def _serve(pipe: Connection, setting: Setting) -> None:
    try:
        start = time.perf_counter()
        _limit_cores(setting.threads)
        _compile_anew(setting.folder)
        job = jax_job(setting) if setting.framework == "jax" else torch_job(setting)
        pipe.send((None, (time.perf_counter() - start, job.device)))
        while True:
            try:
                command = pipe.recv()
            except EOFError:  # stopped, or the parent is gone
                return
            pipe.send((None, _timed(job.run) if command == "run" else getattr(job, command)()))
    except (ValueError, RuntimeError, MemoryError, ImportError) as e:
        # anything else is a bug: its traceback is printed and the pipe closes
        text = " ".join(str(e).split())[:400]
        pipe.send((f"{type(e).__name__}: {text}", None))


def _limit_cores(threads: int) -> None:
    # before a framework is imported: both size their thread pools by the cores they may use
    if threads:
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError("--threads needs Linux; leave it out to use all cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _compile_anew(folder: Path) -> None:
    # else the first call takes what an earlier run has left on disk
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _timed(run: Callable[[], None]) -> Run:
    cpu, start = time.process_time(), time.perf_counter()
    run()
    return Run(time.perf_counter() - start, time.process_time() - cpu)
