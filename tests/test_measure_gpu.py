"""scripts/measure_gpu.sh: its rows, what becomes of those that fail, and the command on a CPU."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from test_compile import NANO

from zmar_jax.config import Config, override

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("measure_gpu")


def sizes(scripts, **changes) -> Any:
    given = {"device": "cuda", "preset": "tiny", "restore": "16x16", "crop": 16, "batch": 2}
    return scripts.Sizes(**given | {"repeats": 1, "settings": ()} | changes)


STEP = {"what": "train", "policy": "bfloat16", "shape": [4, 16, 16], "device": "a card"}
STEP |= {"peak_memory": 2**30, "first_call": 9.0, "difference": None}


def say(*results: dict[str, Any]) -> str:
    return f"print({json.dumps(json.dumps(results))})"


def fake(scripts, name: str, code: str, limit: float = 30.0, **environment: str) -> Any:
    command = (sys.executable, "-c", code, "{json}")
    return scripts.Row(name, command, limit, lambda text, _: json.loads(text), environment)


def run(scripts, monkeypatch, tmp_path: Path, *rows: Any, minutes: float = 1.0) -> Any:
    monkeypatch.setattr(scripts, "rows", lambda sizes: list(rows))
    code = scripts.measure(out=tmp_path / "out", minutes=minutes, device="cpu")
    done = json.loads((tmp_path / "out" / "gpu.json").read_text())
    return code, done["results"], (tmp_path / "out" / "gpu.md").read_text()


def test_a_row_that_fails_is_in_the_table_and_the_others_go_on(scripts, monkeypatch, tmp_path):
    eager = say(STEP | {"framework": "torch", "seconds": 3.0})
    ours = say(STEP | {"framework": "jax", "seconds": 0.5, "difference": 1e-5})
    bad = "import sys; print('no JSON'); print('out | of memory', file=sys.stderr); sys.exit(3)"
    rows = [fake(scripts, name, code) for name, code in (("a", eager), ("b", bad), ("c", ours))]
    code, results, page = run(scripts, monkeypatch, tmp_path, *rows)
    assert code == 1
    assert [result["row"] for result in results] == ["a", "b", "c"]
    assert results[1]["failed"] == "exit code 3: out | of memory"
    assert "| b | exit code 3: out \\| of memory |" in page
    row = "| train | 4 x 16 x 16 | bfloat16 | jax | 0.5 | 6.00 | 8 | - | 1.00 | 1.0e-05 | 9.0 |"
    assert row in page


def test_results_before_a_bad_end_count(scripts, monkeypatch, tmp_path):
    code = say(STEP | {"framework": "jax", "seconds": 0.5}) + "; raise SystemExit('too late')"
    _, results, _ = run(scripts, monkeypatch, tmp_path, fake(scripts, "a", code))
    assert (results[0]["seconds"], results[1]["failed"]) == (0.5, "exit code 1: too late")


def test_a_row_and_all_that_it_started_end_in_time(scripts, monkeypatch, tmp_path):
    number = tmp_path / "child"
    code = "import subprocess, sys, time, pathlib\n"
    code += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    code += f"pathlib.Path({str(number)!r}).write_text(str(child.pid))\n"
    code += "time.sleep(60)"
    start = time.monotonic()
    _, results, _ = run(scripts, monkeypatch, tmp_path, fake(scripts, "a", code, limit=1.0))
    assert time.monotonic() - start < 20
    assert results[0]["failed"].startswith("stopped after 1 s")
    child = Path(f"/proc/{number.read_text()}/stat")
    # ended, and perhaps not yet collected
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_without_time_a_row_says_how_to_run_it(scripts, monkeypatch, tmp_path):
    rows = fake(scripts, "a", "raise SystemExit('it ran')")
    _, results, _ = run(scripts, monkeypatch, tmp_path, rows, minutes=0.1)
    assert results[0]["failed"] == "no time was left; run again with --only 'a'"


def test_profiles_give_the_share_of_the_peak_and_tests_are_counted(scripts, monkeypatch, tmp_path):
    kernels = [{"name": "fusion_3", "count": 2, "seconds": 0.3}]
    profile = {"what": "profile", "framework": "jax", "seconds": 0.5, "peak_seconds": 0.1}
    profile |= {"mfu": 0.2, "kernel_launches": 7, "busy_seconds": 0.4, "kernels": kernels}
    code = say(STEP | profile, STEP | {"framework": "jax, x", "seconds": 0.25})
    tests = "print('F..  [100%]'); print('1 failed, 20 passed, 3 deselected in 9.87s')"
    reading = scripts.rows(sizes(scripts))
    (row,) = [row for row in reading if row.name == "fast tests of numbers"]
    counted = scripts.Row("tests", (sys.executable, "-c", tests), 30, row.read)
    _, results, page = run(scripts, monkeypatch, tmp_path, fake(scripts, "a", code), counted)
    assert "traced: 0.5 s, 20.0% of the chip's peak; 7 kernels, busy for 0.4 s" in page
    assert "| fusion_3 | 2 | 300.000 | 75.0% |" in page
    assert "| jax, x | 0.25 | - | 16 | 40.0% | 1.00 |" in page
    assert results[2]["tests"] == {"failed": 1, "passed": 20, "deselected": 3}
    assert "1 failed, 20 passed" in page


def test_all_rows_of_the_page_are_there(scripts):
    names = [row.name for row in scripts.rows(sizes(scripts))]
    assert len(set(names)) == len(names)
    for task in ("train", "restore"):
        for policy in ("float32", "bfloat16"):
            assert {f"{task}, {policy}", f"{task}, {policy}, torch.compile"} <= set(names)
    assert {"profile, bfloat16", "fast tests of numbers"} <= set(names)
    assert {"train, bfloat16, XLA without Triton"} <= set(names)


def test_the_steps_train_the_model_of_the_preset(scripts):
    given = sizes(scripts, settings=("train.remat=none",)).training("bfloat16")
    config = override(Config(), given)
    assert (config.model.dim, config.model.policy) == (8, "bfloat16")
    assert (config.data.batch_size, config.data.crop, config.train.remat) == (2, 16, "none")


def test_a_choice_of_kernels_makes_rows(scripts, monkeypatch):
    import measure_rows

    monkeypatch.setattr(measure_rows, "kernel_choices", lambda: {"kernels": ("xla", "pallas")})
    found = {row.name: row for row in scripts.rows(sizes(scripts))}
    assert "model.kernels=pallas" in found["train, bfloat16, model.kernels=pallas"].command
    assert "train, bfloat16, model.kernels=xla" in found


def test_there_are_tests_for_numbers(scripts):
    import measure_rows

    for name in measure_rows.NUMERIC_TESTS:
        assert (ROOT / "tests" / f"test_{name}.py").exists()


def test_an_unknown_row_names_all(scripts, monkeypatch, capsys, tmp_path):
    options = ["measure_gpu.py", "--only", "nothing", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", options)
    assert scripts.main() == 1
    assert "no such row; there are: train, bfloat16; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_card_is_known_by_its_driver_s_name(scripts):
    chip_of = importlib.import_module("profile_step").chip_of
    for kind, name in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100")):
        chip = chip_of(kind)
        assert chip
        assert chip.name == name
    assert chip_of("cpu") is None


def test_a_trace_names_what_ran(scripts, tmp_path):
    script = importlib.import_module("profile_step")
    product = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jax.block_until_ready(product(jnp.ones((200, 200))))
    with script.trace(tmp_path):
        jax.block_until_ready(product(x))
    found = script.kernel_seconds(tmp_path)
    # the tangent, and the product under a name that depends on the version of XLA
    assert len(found) == 2
    assert any("tanh" in name for name in found)
    assert all(count == 1 and 0 < seconds < 1 for count, seconds in found.values())


def test_a_python_without_the_packages_is_named(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S "$@"\n')
    bare.chmod(0o755)
    environment = os.environ | {"PYTHON": str(bare)}
    command = [ROOT / "scripts" / "measure_gpu.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {bare} lacks: jax flax ")


def one_device(tmp_path: Path) -> dict[str, str]:
    """Where the tests themselves have four simulated ones."""
    return os.environ | {"XLA_FLAGS": "", "ZMAR_JAX_CACHE": str(tmp_path / "cache")}


@pytest.mark.slow
def test_the_command_measures_a_cpu(tmp_path):
    sizes = ["--device", "cpu", "--preset", "tiny", "--size", "16x16", "--crop", "16"]
    sizes += ["--batch", "2", "--repeats", "1", "--minutes", "7", "--only", "train, bfloat16, tr"]
    environment = one_device(tmp_path) | {"PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "scripts" / "measure_gpu.sh", "--out", tmp_path / "out", *sizes, *NANO],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())["results"]
    forms = ["train.remat=none", "train.remat=reversible"]
    assert [result["framework"] for result in results] == [f"jax, {form}" for form in forms]
    assert all(result["seconds"] > 0 and result["peak_memory"] > 50e6 for result in results)
    assert (tmp_path / "out" / "gpu.md").read_text() in done.stdout + "\n"


@pytest.mark.slow
def test_a_profile_names_what_took_the_time(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "profile_step.py", *NANO]
    command += ["data.batch_size=2", "data.crop=16", "--top", "3"]
    done = subprocess.run(command, env=one_device(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [2, 16, 16]
    assert len(found["kernels"]) == 3
    assert 0 < sum(kernel["seconds"] for kernel in found["kernels"]) <= found["busy_seconds"]
    assert found["kernel_launches"] >= 3
    assert "mfu" not in found
