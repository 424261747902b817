"""A command that is started again; real processes that are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from zmar_jax import cli
from zmar_jax.runtime import processes, restarts
from zmar_jax.runtime.processes import HostLostError, HostsDifferError, ending_with_the_others


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "PAUSE", 0.0)


def counting(folder: Path, *ends: str) -> list[str]:
    """A command whose n-th start does `ends[n]`, and which leaves a line for each."""
    text = (
        "import os, signal, sys\n"
        f"path = {str(folder / 'starts')!r}\n"
        "open(path, 'a').write('start\\n')\n"
        "n = len(open(path).readlines()) - 1\n"
        f"exec({list(ends)!r}[n])\n"
    )
    return [sys.executable, "-c", text]


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("ends", "restarts_", "code", "starts"),
    [
        ((KILLED, f"sys.exit({restarts.LOST})", "sys.exit(0)"), 5, 0, 3),
        ((KILLED, KILLED), 1, 128 + signal.SIGKILL, 2),
        (("sys.exit(1)",), 5, 1, 1),
        (("sys.exit(2)",), 5, 2, 1),
        ((f"sys.exit({restarts.LOST})",), 0, restarts.LOST, 1),
    ],
)
def test_what_ends_by_accident_starts_again(ends, restarts_, code, starts, tmp_path):
    said: list[str] = []
    assert restarts.watched(counting(tmp_path, *ends), restarts_, said.append) == code
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
    accidents = sum(end not in ("sys.exit(0)", "sys.exit(1)", "sys.exit(2)") for end in ends)
    assert len(said) == accidents
    assert all("SIGKILL" in line or "another host" in line for line in said)


def test_sigterm_is_passed_on_and_ends_it(tmp_path):
    waits = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(restarts))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\nimport time; time.sleep(60)"
    )
    command = counting(tmp_path, waits.replace("restarts", str(restarts.LOST)), "sys.exit(0)")
    watcher = (
        "import sys\nfrom zmar_jax.runtime.restarts import watched\n"
        f"sys.exit(watched({command!r}, 3, print))"
    )
    process = subprocess.Popen([sys.executable, "-c", watcher])
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == restarts.LOST
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


def test_the_command_watches_itself_once(monkeypatch):
    asked = []
    monkeypatch.setattr(restarts, "watched", lambda *args: asked.append(args[:2]) or 7)
    monkeypatch.setattr(sys, "argv", ["zmar-jax", "train", "--restarts", "3"])
    options = ["train", "--config", "tiny", "--workdir", "w", "--restarts", "3"]
    assert cli.main(options) == 7
    command = [sys.executable, "-m", "zmar_jax", "train", "--restarts", "3"]
    assert asked == [(command, 3)]
    monkeypatch.setitem(os.environ, restarts._CHILD, "1")
    monkeypatch.setattr("zmar_jax.train.train", lambda *args: 0)
    assert cli.main(options) == 0
    assert len(asked) == 1


def test_an_error_between_processes_is_a_host_that_has_gone(monkeypatch):
    def fails(text: str) -> None:
        with ending_with_the_others():
            raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^UNKNOWN: reset$"):
        fails("UNKNOWN: reset")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(HostLostError, match=r"has gone \(UNKNOWN: reset\); the same command"):
        fails("UNKNOWN: reset\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^RESOURCE_EXHAUSTED"):
        fails("RESOURCE_EXHAUSTED: 4 GiB")


def test_hosts_that_differ_end_with_a_code_of_their_own(monkeypatch, capsys):
    texts = ['{"train.steps": 1}', '{"train.steps": 2}']
    monkeypatch.setattr(processes, "gather", lambda text: texts)
    monkeypatch.setattr("zmar_jax.train.train", lambda *args: processes.agree({}))
    assert cli.main(["train", "--config", "tiny", "--workdir", "w"]) == 2
    assert "train.steps: 1 in process 0, 2 in process 1" in capsys.readouterr().err
    with pytest.raises(HostsDifferError):
        processes.agree({})
