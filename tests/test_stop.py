"""Ctrl-C: remembered, looked at between pictures, and at once the second time."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from zmar_jax import cli
from zmar_jax.cli import console
from zmar_jax.config import PRESETS
from zmar_jax.imaging.exposure import Seen
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.restore import restorer
from zmar_jax.runtime import stop
from zmar_jax.train.stop import stop_signal


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def handlers() -> list:
    return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]


def test_a_signal_is_remembered_until_somebody_looks():
    before = handlers()
    with stop.remembered(signal.SIGINT):
        stop.stop_if_asked()
        interrupt()
        assert stop.heard()
        with stop.remembered(signal.SIGINT, signal.SIGTERM):  # as `train` in the command line
            assert stop.heard()
        with pytest.raises(KeyboardInterrupt):
            stop.stop_if_asked()
    assert handlers() == before
    stop.stop_if_asked()  # what comes after the block, as in a notebook, is not interrupted
    with stop.remembered(signal.SIGINT):
        assert not stop.heard()


def test_sigterm_ends_a_loop_but_is_no_interrupt():
    with stop.remembered(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.heard()
        stop.stop_if_asked()


def test_ctrl_c_ends_several_processes_at_the_same_step(monkeypatch):
    """JAX's service, for which a list stands here, hears SIGTERM, and chooses the step."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: heard.append(signum))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(heard) and step >= 3
    )
    try:
        with stop_signal() as stopping:
            assert not stopping(0)
            interrupt()  # raises nothing in the middle of a step
            assert [stopping(step) for step in (1, 2, 3)] == [False, False, True]
            assert heard == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                interrupt()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_signals():
    def work() -> None:
        with stop.second_ends(lambda: None), stop.remembered(signal.SIGINT):
            ran.set()

    before, ran = handlers(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran.is_set()
    assert handlers() == before


def test_the_first_is_told_of_and_the_second_ends():
    told, ended, codes = threading.Event(), threading.Event(), []
    with (
        stop.second_ends(told.set, lambda code: [codes.append(code), ended.set()]),
        stop.remembered(signal.SIGINT),
    ):
        interrupt()
        assert told.wait(5)
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert ended.wait(5)
    assert codes == [stop.INTERRUPTED]


BUSY = """
import hashlib, importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("stop", sys.argv[1])
stop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stop)
with stop.second_ends(lambda: print("told", flush=True)), stop.remembered(signal.SIGINT):
    if not os.fork():  # a child's signals are its own
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    os.wait()
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA does: minutes outside of Python
"""


def test_the_second_ends_what_does_not_return_to_python():
    command = [sys.executable, "-c", BUSY, stop.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "told\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == stop.INTERRUPTED


def test_a_command_without_pictures_is_interrupted_too(monkeypatch, capsys):
    monkeypatch.setattr(cli.app, "cli", lambda **_: interrupt())
    assert cli.main(["info"]) == stop.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_a_progress_bar_is_where_a_command_ends(capsys):
    with stop.remembered(signal.SIGINT), console.progress(3, "working") as step:
        step(Path("a"), Path("b"), None)
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            step(Path("a"), Path("b"), None)


class StandIn:
    """Restores nothing, and is interrupted at its second picture."""

    config, count, source = PRESETS["tiny"], 0, "weights"

    def see(self, image: np.ndarray, *_: object) -> Seen:
        return Seen(image, np.zeros(image.shape[:2], bool))

    def sample_seen(self, seen: Seen, *_: object) -> tuple[np.ndarray, np.ndarray]:
        self.count += 1
        if self.count == 2:
            interrupt()
        return seen.image, np.zeros(seen.image.shape, np.float32)


def test_restoring_ends_between_two_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restorer, "load_restorer", lambda *_: StandIn())
    for name in "abc":
        write_photo(tmp_path / "in" / f"{name}.png", Photo(np.zeros((16, 16, 3), np.uint8)))
    out = tmp_path / "out"
    assert cli.main(["restore", str(tmp_path / "in"), "-o", str(out)]) == stop.INTERRUPTED
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    assert "Ctrl-C again ends at once" in capsys.readouterr().err
