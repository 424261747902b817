"""What processes tell each other by JAX's coordination service, and how they see that one goes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from zmar_jax.runtime import coordination
from zmar_jax.runtime.coordination import BEAT, GONE, Beats

HERE = Path(__file__).parent


class Store:
    """In place of the service's client."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.answers = True

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        if not self.answers:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [item for item in self.values.items() if item[0].startswith(folder)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still but for who moves it."""
    now = [100.0]
    monkeypatch.setattr(coordination.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def hosts(clock: list[float]) -> list[Beats]:
    """Of three processes, which all have been seen once."""
    store = Store()
    found = [Beats(store, i, f"vm{i}") for i in range(3)]
    beat(found, 0)
    beat(found, 0)
    return found


def beat(hosts: list[Beats], number: int) -> None:
    for host in hosts:
        host.beat(number)


def test_who_shows_no_life_is_named(hosts, clock) -> None:
    for number in range(1, 11):
        clock[0] += BEAT
        assert hosts[0].silent(GONE) == []
        beat([hosts[0], hosts[2]], number)
    clock[0] += BEAT
    assert hosts[0].silent(GONE) == hosts[2].silent(GONE) == ["process 1 (vm1)"]


def test_those_that_end_as_one_has_gone_are_not_named(hosts, clock) -> None:
    for number in range(1, 30):
        clock[0] += BEAT
        beat(hosts[: 1 if number > 5 else 2], number)
    assert hosts[0].silent(GONE) == ["process 2 (vm2)"]


def test_one_that_has_done_its_work_may_be_silent(hosts, clock) -> None:
    hosts[1].end(coordination._DONE)
    for number in range(1, 30):
        clock[0] += BEAT
        beat([hosts[0], hosts[1], hosts[2]], number)  # of the second none is heard any more
    assert hosts[0].silent(GONE) == []


def test_the_first_has_gone_where_nobody_answers(hosts, clock) -> None:
    hosts[1]._client.answers = False
    clock[0] += GONE + 1
    with pytest.raises(jax.errors.JaxRuntimeError):
        hosts[1].beat(1)
    assert hosts[1].silent(GONE) == ["process 0 (vm0)"]


def test_one_that_stood_still_itself_accuses_nobody(hosts, clock, monkeypatch) -> None:
    """Its first look is long after its last; only what is not heard from then on counts."""
    looks = iter([False, False, True])
    told: list[list[str]] = []

    def wait(seconds: float) -> bool:
        clock[0] += 45 if not told else seconds
        return next(looks)

    monkeypatch.setattr(hosts[0]._ended, "wait", wait)
    hosts[0].look_until_end(told.append)
    assert told == []


def test_who_is_missing_is_looked_for_a_while(hosts, clock, monkeypatch) -> None:
    def sleep(seconds: float) -> None:
        clock[0] += seconds
        hosts[0].beat(int(clock[0] * 10))
        hosts[2].beat(int(clock[0] * 10))

    monkeypatch.setattr(coordination.time, "sleep", sleep)
    assert hosts[0].missing() == ["process 1 (vm1)"]
    assert clock[0] < 100 + coordination._PATIENCE


def test_alone_nobody_is_watched() -> None:
    with coordination.watching(lambda gone: pytest.fail(str(gone))) as missing:
        assert missing() == []


def test_two_processes_with_other_devices(tmp_path: Path) -> None:
    """Real ones: they exchange texts, see what differs, and the first sees the second one go."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, str(HERE / "coordination_worker.py"), address, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={process + 1}"}
            | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"},
        )
        for process in range(2)
    ]
    first, second = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [75, -signal.SIGKILL], (first, second)
    host = socket.gethostname()
    shared = ["0 0 b''", "3 3 b'1 ?'", "100001 100001 b'xx1'"]
    shared.append("  devices  process 0 (host): 1; process 1 (host): 2")
    assert first[0].splitlines() == [
        *shared, "ProcessError process 1: disk", f"process 1 ({host})",
    ]  # fmt: skip
    assert second[0].splitlines() == [*shared, "OSError disk"]


def test_jax_gives_up_a_process_only_after_this_package_has_named_it() -> None:
    """What JAX sees is up to half of its limit old; the first process lets the others ask it."""
    assert coordination.HEARTBEAT / 2 > GONE + 3 * BEAT
