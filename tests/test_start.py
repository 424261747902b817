"""What a start says of the time until its first step."""

import subprocess
import sys
import time

from zmar_jax.runtime.age import process_age
from zmar_jax.train import start


def test_the_age_of_a_process_counts_from_its_command() -> None:
    code = "import time; time.sleep(1); from zmar_jax.runtime.age import process_age as age; "
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code + "print(age())"], capture_output=True, text=True, check=True
    )
    assert 1 <= float(done.stdout) <= time.monotonic() - begin
    assert process_age() > 0


def test_stages_and_the_rest_are_the_whole(monkeypatch) -> None:
    now = [50.0]
    monkeypatch.setattr(start.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(start.time, "time", lambda: 1000.0)
    begin = start.Start(996.0)
    assert begin.begun == 996
    for stage, seconds in (("opening data", 1.5), ("compiling", 6.0), ("compiling", 2.0)):
        with begin.timed(stage):
            now[0] += seconds
    now[0] += 0.5
    assert begin.trained() == 14.0
    with begin.timed("compiling"):
        now[0] += 9
    assert begin.trained() is None
    assert str(begin) == (
        "first step 14.0 s after the command: Python, JAX and the other hosts 4.0 s, "
        "opening data 1.5 s, compiling 8.0 s, the rest 0.5 s"
    )
