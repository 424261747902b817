"""An evaluation that several processes share: the same numbers, also where one was killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import golden
import numpy as np
import pytest

from zmar_jax.config import PRESETS
from zmar_jax.evaluate.records import EvaluationError, Records
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.weights import Weights, save_weights

SETTINGS = {"seed": 0}
PICTURE = np.zeros((16, 16, 3), np.uint8)


def test_the_first_process_takes_what_all_have_done(tmp_path: Path) -> None:
    first = Records(tmp_path, SETTINGS)
    second, third = (Records(tmp_path, SETTINGS, process=i) for i in (1, 2))
    for records, name in ((first, "a"), (second, "b"), (third, "c"), (second, "d")):
        records.add(name, "x", PICTURE, None, {"psnr": 1.0})
    assert first.find("b", "x") is None
    first.merge()
    assert all(first.find(name, "x") for name in "abcd")
    assert [path.name for path in tmp_path.glob("records*")] == ["records.jsonl"]


def test_what_a_killed_process_has_left_counts_for_any_number_of_them(tmp_path: Path) -> None:
    Records(tmp_path, SETTINGS)
    Records(tmp_path, SETTINGS, process=3).add("a", "x", PICTURE, None, {"psnr": 1.0})
    assert Records(tmp_path, SETTINGS).find("a", "x")
    assert Records(tmp_path, SETTINGS, process=1).find("a", "x")
    again = Records(tmp_path, SETTINGS, overwrite=True)
    assert again.find("a", "x") is None
    assert not (tmp_path / "restored" / "a.png").exists()


def test_a_process_that_sees_another_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"--out must be a folder that all hosts see"):
        Records(tmp_path, SETTINGS, process=1)
    Records(tmp_path, {"seed": 1})
    with pytest.raises(EvaluationError, match=r"other settings: seed 1, not 0"):
        Records(tmp_path, SETTINGS, process=1)


QUICKLY = """
import sys
import time

import numpy as np

from zmar_jax import cli
from zmar_jax.evaluate import network


class Brighter:
    # In place of the network, which would compile for longer than the pictures take.
    def __init__(self, weights, *_, **__):
        self.config, self.seconds = weights.config, 0.0

    def rows(self, height, width):
        return 2

    def check(self, names, sizes): ...

    def see(self, lows):
        return lows

    def encode(self, seen): ...

    def restore(self, seen, sampling, features):
        time.sleep(0.2)
        return [(np.minimum(7 * low / 255, 1), np.zeros(low.shape)) for low in seen]

    def bits_per_dim(self, gts, seeds, features):
        return [float(gt.mean()) + seed / 2**32 for gt, seed in zip(gts, seeds)]


network.Network = Brighter
sys.exit(cli.main(sys.argv[1:]))
"""


def start(data: Path, weights: Path, out: Path, processes: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = ("--coordinator", address, "--processes", str(processes), "--process")
    command = ["evaluate", "--data", str(data), "-c", str(weights), "-o", str(out)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", QUICKLY, *command, *joined, str(i)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        )
        for i in range(processes)
    ]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_numbers(tmp_path: Path) -> None:
    """Of three, one is killed: the others name it, and two go on with what there is."""
    weights, data = tmp_path / "tiny.safetensors", tmp_path / "pairs"
    save_weights(weights, Weights(golden.params("tiny", 0), PRESETS["tiny"], "pth", 0, 0, ()))
    rng = np.random.default_rng(0)
    for i in range(60):
        gt = rng.integers(0, 256, (32, 32 if i % 3 else 40, 3), np.uint8)
        write_photo(data / "low" / f"{i:02}.png", Photo(gt // 8))
        write_photo(data / "high" / f"{i:02}.png", Photo(gt))
    (alone,) = start(data, weights, tmp_path / "alone", 1)
    told = alone.communicate(timeout=400)
    assert alone.returncode == 0, told
    out = tmp_path / "several"
    three = start(data, weights, out, 3)
    deadline = time.monotonic() + 400
    while not (out / "records.1.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    three[1].send_signal(signal.SIGKILL)
    told = [process.communicate(timeout=400)[1] for process in three]
    assert [process.returncode for process in three] == [75, -signal.SIGKILL, 75], told
    assert all(
        f"process 1 ({socket.gethostname()}) of this run has gone" in told[i] for i in (0, 2)
    )
    assert not (out / "metrics.json").exists()
    done = sum(path.read_text().count("\n") for path in out.glob("records*.jsonl"))
    assert 0 < done < 60
    both = start(data, weights, out, 2)
    outputs = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "PSNR" in outputs[0][0]
    assert outputs[1][0] == ""
    assert (out / "metrics.json").read_bytes() == (tmp_path / "alone/metrics.json").read_bytes()
    assert [path.name for path in out.glob("records*")] == ["records.jsonl"]
    restored = {path.name: path.read_bytes() for path in (out / "restored").iterdir()}
    assert restored == {
        path.name: path.read_bytes() for path in (tmp_path / "alone" / "restored").iterdir()
    }
