"""Trains on several processes into an emulated bucket while a seed decides what goes wrong, and
compares what comes out with a run that nothing disturbed.

Processes are killed, stand still and are told to end; the bucket is busy, cuts connections, refuses
and is slow; all start again by themselves (`train --restarts`), or as another number of processes
and devices. Half of the time the layout stays as it is: then weights, optimizer and counters must
be equal bit for bit. In the other half it changes: then the loss of every step must be the same
to LOSS, and the distance of the weights at the end at most PATH of the distance that they went.

It needs `pip install '.[test]'`. All of it is on this machine: the devices are simulated.

$ python scripts/chaos.py --minutes 60

$ python scripts/chaos.py --minutes 10 --seed 3 --processes 2 --folder /tmp/chaos
"""

import collections
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos_run
import numpy as np
import tyro
from chaos_run import ChaosError, Hosts, Layout
from emulators import Fault, Gate, emulator
from rich.console import Console
from rich.table import Table

from zmar_jax.files.mirror import fetched

LOSS = 1e-3
"""Relative difference of a step's loss that rounding may make where layouts change."""
PATH = 0.02
"""Distance of the weights at the end, as a share of how far training moved them."""
HANGING = 45.0
"""Seconds for which a process stands still, so that the others have to give it up."""
AT_ONCE = 0.3
"""How often the next thing goes wrong before the run has got over the last."""
console: Console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def main(
    *,
    minutes: float = 60.0,
    seed: int = 0,
    processes: int = 4,
    folder: Path | None = None,
    patience: float = 300.0,
) -> int:
    """Disturbs two runs, each for half of the time, and compares each with an undisturbed one.

    Args:
      minutes: How long to disturb; starting, ending and comparing come on top.
      seed: Of what goes wrong and when.
      processes: The most that train at once: 2 or more.
      folder: Logs are kept here, which must be new; by default a folder that goes when all is well.
        Compiled programs lie here, too, or where JAX_COMPILATION_CACHE_DIR says.
      patience: Seconds within which a run must be back after what went wrong.
    """
    if processes < 2 or minutes <= 0:
        sys.exit("--processes must be 2 or more, and --minutes above 0")
    root = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    if folder and folder.exists():
        sys.exit(f"{folder}: exists already; give a new --folder")
    survived: collections.Counter[str] = collections.Counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    try:
        for name, part in (("one layout", _one_layout), ("other layouts", _other_layouts)):
            console.print(f"{name}:")
            place = root / name.replace(" ", "_")
            chaos = Chaos(place, random.Random(f"{seed} {name}"), survived, patience)
            part(chaos, processes, minutes / 2)
    except ChaosError as e:
        console.print(f"failed: {e}; logs: {root}")
        return 1
    finally:
        console.print(_table(survived))
    if not folder:
        shutil.rmtree(root)
    return 0


@dataclasses.dataclass
class Chaos:
    """What goes wrong with a run: `random` says when, and `survived` counts what it got over."""

    folder: Path
    random: random.Random
    survived: "collections.Counter[str]"
    patience: float

    @contextlib.contextmanager
    def running(self, layout: Layout, *settings: str) -> Iterator[tuple[Hosts, Gate]]:
        """A run that has begun, whose bucket is in this process's environment, too."""
        chaos_run.photos(self.folder / "photos")
        with (
            emulator("s3", self.folder / "bucket.log") as (gate, environment),
            chaos_run.ended(
                Hosts(self.folder, gate, environment, settings, self.patience)
            ) as hosts,
        ):
            os.environ.update(environment)
            hosts.start(layout)
            hosts.wait_for_progress(2)
            yield hosts, gate

    def disturb(self, hosts: Hosts, events: "list[tuple[str, Callable[[], None]]]") -> None:
        """One or several things go wrong, until the run has got over them."""
        pending = []
        while True:
            time.sleep(self.random.uniform(0, 6))
            name, event = self.random.choice(events)
            console.print(f"  step {hosts.step()}: {name}")
            event()
            pending.append(name)
            if self.random.random() >= AT_ONCE or name in ALONE:
                break
        hosts.wait_for_progress()
        self.survived.update(pending)

    def one_of(self, hosts: Hosts) -> int | None:
        """The process id of a training, of any host."""
        return hosts.training(self.random.randrange(hosts.layout.processes))


ALONE = ("a write refused", "SIGTERM at one process", "another layout")
"""After these the run must go on before anything else goes wrong: a bucket that refuses twice ends
a run, and only a run that trains can save."""


def _one_layout(chaos: Chaos, processes: int, minutes: float) -> None:
    """Bit for bit."""
    layout = Layout(min(processes, 2), 1)
    with chaos.running(layout, "train.learning_rate=1e-3") as (hosts, gate):
        events = [*_of_processes(chaos, hosts), *_of_the_bucket(chaos, gate)]
        events.append(("SIGTERM at one process", lambda: _terminated(chaos, hosts, layout)))
        _until(time.monotonic() + 60 * minutes, lambda: chaos.disturb(hosts, events))
        step, disturbed, calm = _both(chaos, hosts, gate, layout)
    names = sorted(disturbed.keys() | calm.keys())
    other = [n for n in names if n not in disturbed or n not in calm or _differ(n, disturbed, calm)]
    if other:
        raise ChaosError(f"at step {step} {len(other)} arrays differ, as {other[:3]}")
    console.print(f"  step {step}: {len(names)} arrays are equal bit for bit")


def _differ(name: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a[name].tobytes() != b[name].tobytes()


def _other_layouts(chaos: Chaos, processes: int, minutes: float) -> None:
    """Within rounding."""
    layouts = [
        Layout(count, devices, fsdp)
        for count in (1, 2, 4)
        for devices in (1, 2, 4)
        for fsdp in (1, 2, 4)
        if count <= processes and count * devices <= 4 and count * devices % fsdp == 0
    ]
    with chaos.running(Layout(1, 1), "train.learning_rate=1e-5") as (hosts, gate):

        def other() -> None:
            layout = chaos.random.choice([each for each in layouts if each != hosts.layout])
            console.print(f"    {hosts.layout} -> {layout}")
            if chaos.random.random() < 0.5:
                _terminated(chaos, hosts, layout)
                return
            hosts.kill()
            hosts.start(layout)

        rest = [*_of_processes(chaos, hosts), *_of_the_bucket(chaos, gate)]
        events = [*rest, *[("another layout", other)] * len(rest)]
        _until(time.monotonic() + 60 * minutes, lambda: chaos.disturb(hosts, events))
        step, disturbed, calm = _both(chaos, hosts, gate, Layout(1, 1))
        losses = _losses(chaos.folder)
    begun = chaos_run.arrays(chaos.folder / "peace", 1)
    strayed = chaos_run.strayed(disturbed, calm, begun)
    console.print(
        f"  step {step}: losses differ by up to {losses:.1e} (allowed: {LOSS:.0e}), weights by "
        f"{strayed:.1e} of the way that they went (allowed: {PATH:.0e})"
    )
    if losses > LOSS or strayed > PATH or disturbed["['step']"] != calm["['step']"]:
        raise ChaosError("that is more than rounding")


def _of_processes(chaos: Chaos, hosts: Hosts) -> list[tuple[str, Callable[[], None]]]:
    def send(signum: int) -> int | None:
        if (process := chaos.one_of(hosts)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signum)
        return process

    def stop(seconds: float) -> None:
        if (process := send(signal.SIGSTOP)) is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def restart_all() -> None:
        hosts.kill()
        hosts.start(hosts.layout)

    def kill() -> None:
        send(signal.SIGKILL)

    return [
        *[("SIGKILL of one process", kill)] * 2,
        ("SIGKILL of all, started again", restart_all),
        ("SIGSTOP for 5 s", lambda: stop(5)),
        (f"SIGSTOP for {HANGING:.0f} s", lambda: stop(HANGING)),
    ]


def _of_the_bucket(chaos: Chaos, gate: Gate) -> list[tuple[str, Callable[[], None]]]:
    def fault(*args: Any, **options: Any) -> None:
        gate.faults = [fault for fault in gate.faults if fault.times > 0]
        gate.faults.append(Fault(*args, **options))

    few = chaos.random.randint
    return [
        ("503s", lambda: fault("", times=few(1, 3), status=503)),
        ("connections cut", lambda: fault("", times=few(1, 3), cut=True)),
        ("a write refused", lambda: fault("PUT .*/checkpoints/.*digests", times=1, status=403)),
        ("a slow bucket", lambda: fault("", times=few(20, 60), delay=0.3)),
    ]


def _terminated(chaos: Chaos, hosts: Hosts, layout: Layout) -> None:
    """One is told to end; all must save and end well. Then the same command again."""
    before = hosts.wait_for_progress()
    hosts.watchers[chaos.random.randrange(hosts.layout.processes)].send_signal(signal.SIGTERM)
    codes = hosts.wait_for_end()
    if any(codes) or hosts.step() < before:
        raise ChaosError(f"after SIGTERM the processes ended with {codes} at step {hosts.step()}")
    hosts.start(layout)


def _until(deadline: float, do: Callable[[], None]) -> None:
    while time.monotonic() < deadline:
        do()


def _both(
    chaos: Chaos, hosts: Hosts, gate: Gate, layout: Layout
) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The last step, and the arrays of the disturbed run and of an undisturbed one at that step."""
    gate.faults.clear()
    hosts.wait_for_progress()
    hosts.watchers[0].send_signal(signal.SIGTERM)
    if any(codes := hosts.wait_for_end()):
        raise ChaosError(f"at the end the processes ended with {codes}")
    step = hosts.step()
    with fetched(f"s3://{chaos_run.BUCKET}/{chaos_run.RUN}", ChaosError) as found:
        disturbed = chaos_run.arrays(found, step)
        shutil.copy(found / "metrics.jsonl", chaos.folder)
    peace = hosts.in_peace(layout, step)
    return step, disturbed, chaos_run.arrays(peace, step)


def _losses(folder: Path) -> float:
    """The largest relative difference of a step's loss; each must be there once."""
    disturbed, calm = (chaos_run.losses(where) for where in (folder, folder / "peace"))
    if disturbed.keys() != calm.keys():
        missing = sorted(disturbed.keys() ^ calm.keys())
        raise ChaosError(f"metrics.jsonl lacks or has too much: steps {missing[:9]}")
    return max(abs(disturbed[step] / calm[step] - 1) for step in calm)


def _table(survived: "collections.Counter[str]") -> Table:
    table = Table("what went wrong", "survived", title=f"{survived.total()} events survived")
    for name in sorted(survived):
        table.add_row(name, str(survived[name]))
    return table


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
