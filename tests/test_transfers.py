"""When the loop puts batches on the devices and reads values from them: never while they wait."""

import dataclasses
import types
from typing import Any

import pytest
import training

from zmar_jax.runtime import sharding
from zmar_jax.train import loop
from zmar_jax.train.start import Start

Event = tuple[str, int]
STEPS = 12


@dataclasses.dataclass
class Value:
    """A number on a device, of a step; reading it waits until the step is computed."""

    step: int
    events: list[Event]

    def __float__(self) -> float:
        self.events.append(("read", self.step))
        return 0.0

    def __int__(self) -> int:
        return int(float(self))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What a run of `STEPS` steps does, in order, with nothing computed."""
    done: list[Event] = []

    class Recorded:
        """A checkpoint, or a validation."""

        def save(self, step: int, *_: Any) -> None:
            done.append(("save", step))

        def wait(self) -> None: ...

    class Log:
        timed = staticmethod(lambda what: training.contextlib.nullcontext())

        def scalars(self, step: int, values: dict[str, float]) -> None:
            done.append(("logged", step))

        def advance(self, step: int) -> None: ...

        def started(self, *_: Any) -> None: ...

    class Loader:
        batches = 0

        def __next__(self) -> int:
            self.batches += 1
            return self.batches - 1

        def get_state(self) -> dict[str, Any]:
            return {}

    def step(state: Any, batch: int, rng: Any) -> tuple[Any, dict[str, Value]]:
        done.append(("step", batch))
        names = ("loss", "bad_steps")
        return state, {name: Value(batch, done) for name in names}

    def put(batch: int, mesh: Any) -> int:
        done.append(("put", batch))
        return batch

    def no_validation(run: Any) -> dict[str, float]:
        run.record()
        done.append(("validate", run.step))
        return {}

    begun = types.SimpleNamespace(step=1, bad_steps=0, params=None, ema=None)
    programs = (
        types.SimpleNamespace(compile=lambda *_, does=does: does)
        for does in (lambda *_: begun, step)
    )
    monkeypatch.setattr(loop, "compile_steps", lambda *_: tuple(programs))
    monkeypatch.setattr(loop, "check_memory", lambda *_: None)
    monkeypatch.setattr(loop._Run, "validate", no_validation)
    monkeypatch.setattr(sharding, "shard_batch", put)
    config = training.config(steps=STEPS, log_every=2, validate_every=9, checkpoint_every=5)
    fresh = types.SimpleNamespace(step=0, bad_steps=0, params=None, ema=None)
    mesh: Any = None
    monkeypatch.setattr(sharding, "jit", lambda *_: lambda params: {"condition_max": last()})

    def last() -> Value:
        return Value(max(n for what, n in done if what == "step"), done)

    run = loop._Run(config, mesh, fresh, Loader(), Loader(), Recorded(), Log(), None, Start())  # pyright: ignore
    while run.step < STEPS:
        run.advance()
        run.record_and_save()
    run.end()
    return done


def test_no_value_is_read_in_the_step_that_it_was_computed_in(events: list[Event]) -> None:
    """But for those before a validation or a checkpoint, which wait for the weights anyway."""
    waiting = {n for what, n in events if what in ("save", "validate")}
    reads = [(at, n) for at, (what, n) in enumerate(events) if what == "read"]
    early = {n for at, n in reads if ("step", n + 1) not in events[:at]}
    # batch n makes step n + 1 of the run, as the first only initialises
    assert {n + 1 for n in early} <= waiting
    assert len({n for _, n in reads} - early) > 5


def test_a_batch_is_on_its_way_while_the_step_before_is_computed(events: list[Event]) -> None:
    for batch in range(2, STEPS):
        put = events.index(("put", batch))
        assert events.index(("step", batch - 1)) < put < events.index(("step", batch))
        if ("read", batch - 1) in events[:put]:  # the checkpoint before it waited
            assert {("save", batch), ("validate", batch)} & set(events[:put])


def test_each_log_step_is_recorded_once_and_before_what_is_saved(events: list[Event]) -> None:
    logged = [n for what, n in events if what == "logged"]
    assert logged == [2, 4, 6, 8, 10, 12]
    for what, step in events:
        if what == "save":
            before = events[: events.index(("save", step))]
            assert [n for what, n in before if what == "logged"] == [n for n in logged if n <= step]


def test_what_is_read_for_a_step_is_few(events: list[Event]) -> None:
    """At a log step each value once; else the count of bad steps alone."""
    counts = {n: events.count(("read", n)) for n in range(1, STEPS - 1)}
    assert set(counts.values()) <= {1, 4}
    assert counts[2] == 1  # step 3 is not logged
