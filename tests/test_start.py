"""What a start says of the time until its first step."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos_run import SMALL, photos

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


@pytest.mark.slow
def test_a_second_start_compiles_no_program_again(tmp_path: Path) -> None:
    """But those that take less than a second, which JAX does not keep."""
    data, programs, workdir = photos(tmp_path / "photos"), tmp_path / "programs", tmp_path / "run"
    settings = [*SMALL, f"data.folder={data}", f"data.val_folder={data}"]
    settings.append(f"data.data_dir={tmp_path / 'data'}")
    kept = []
    for steps in (3, 6):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "zmar_jax", "train", *settings, f"train.steps={steps}"),
                *("--config", "tiny", "--workdir", str(workdir), "--accept-changes"),
            ],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs), "XLA_FLAGS": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        kept.append({path.name for path in programs.glob("*-cache")})
    assert any("train_step" in name for name in kept[0])
    assert kept[0] == kept[1]
    told = re.search(r"first step (.*) s after the command: .*compiling (.*) s", done.stderr)
    assert told
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    started = {r["step"]: r["start_seconds"] for r in records if "start_seconds" in r}
    assert started.keys() == {2, 4}  # the first that each trained
    assert started[4] == pytest.approx(float(told[1]), abs=0.06)
