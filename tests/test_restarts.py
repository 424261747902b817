"""A command that is started again; real processes that are killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from zmar_jax import cli
from zmar_jax.runtime import processes, restarts
from zmar_jax.runtime.processes import HostLostError, HostsDifferError, ending_with_the_others
from zmar_jax.weights import load_weights


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
    process = subprocess.Popen([sys.executable, "-c", watcher], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == restarts.LOST
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
        with ending_with_the_others(lambda why: None):
            raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^UNKNOWN: reset$"):
        fails("UNKNOWN: reset")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(HostLostError, match=r"^another host .* has gone \(UNKNOWN: reset\);"):
        fails("UNKNOWN: reset\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^RESOURCE_EXHAUSTED"):
        fails("RESOURCE_EXHAUSTED: 4 GiB")


def test_hosts_that_differ_end_with_a_code_of_their_own(monkeypatch, capsys):
    texts = ['["a", {"train.steps": 1}]', '["b", {"train.steps": 2}]']

    def train(*args: object) -> None:
        monkeypatch.setattr(processes, "gather", lambda text: texts)
        processes.agree({})

    monkeypatch.setattr("zmar_jax.train.train", train)
    assert cli.main(["train", "--config", "tiny", "--workdir", "w"]) == 2
    assert "train.steps  process 0 (a): 1; process 1 (b): 2" in capsys.readouterr().err
    with pytest.raises(HostsDifferError):
        processes.agree({})


SMALL = (
    *("model.dim=2", "model.blocks=[1,1,1]", "model.heads=[1,1,1]", "model.refinement_blocks=1"),
    *("model.flow_additional_steps=1", "model.flow_steps=1", "model.flow_hidden=4"),
    *("data.batch_size=2", "data.crop=16", "data.workers=0", "train.steps=12"),
    *("train.checkpoint_every=3", "train.validate_every=6", "train.log_every=3"),
)


@contextlib.contextmanager
def two_hosts(
    folder: Path, photos: Path, *options: str
) -> Iterator[tuple[list[subprocess.Popen[str]], Callable[[], list[str]]]]:
    """A training by two processes, which write to `folder`, and what waits for what they say."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    data = [f"data.folder={photos}", f"data.val_folder={photos}", f"data.data_dir={folder}.data"]
    command = ["-m", "zmar_jax", "train", *SMALL, *data, "--config", "tiny"]
    joined = ["--workdir", str(folder), "--coordinator", address, "--processes", "2", *options]
    alone = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        paths = [folder.with_name(f"{folder.name}.{i}") for i in "01"]
        logs = [stack.enter_context(path.open("w+")) for path in paths]
        hosts = [
            subprocess.Popen(
                [sys.executable, *command, *joined, "--process", str(process)],
                env={**os.environ, **alone},
                stderr=log,
                text=True,
                start_new_session=True,
            )
            for process, log in enumerate(logs)
        ]
        for host in hosts:
            stack.callback(host.wait)
            stack.callback(kill_all, host)

        def ended() -> list[str]:
            codes = [host.wait(400) for host in hosts]
            told = [path.read_text() for path in paths]
            assert codes == [0, 0], told
            return told

        yield hosts, ended


def kill_all(host: subprocess.Popen[str]) -> None:
    """The process and its child, if they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(host.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_host_that_is_killed_brings_the_run_back(tmp_path):
    """The first one, which the others look to."""
    killed = 0
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(photos / f"{i}.png")
    expected, run = tmp_path / "undisturbed", tmp_path / "run"
    with two_hosts(expected, photos) as (_, ended):
        ended()
    with two_hosts(run, photos, "--restarts", "9") as (hosts, ended):
        deadline = time.monotonic() + 400
        while not (run / "checkpoints" / "6").exists():
            assert time.monotonic() < deadline
            assert hosts[killed].poll() is None
            time.sleep(0.02)
        child = subprocess.check_output(["pgrep", "-P", str(hosts[killed].pid)], text=True)
        os.kill(int(child), signal.SIGKILL)
        told = ended()
    assert "ended by SIGKILL; it starts again" in told[killed]
    assert "resumed at step" in told[0]
    found, wanted = (load_weights(folder).params for folder in (run, expected))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
