"""Kills a training run with SIGKILL at random moments, in start-up and in training, and shows that
nothing is lost.

Trains twice: once in peace, once killed again and again and started anew with the same command.
The final weights, optimizer and counters must be equal bit for bit.

$ python scripts/kill_and_resume.py --config photos_nano --workdir /tmp/kills \
      --kills 10 train.steps=300 train.checkpoint_every=20 train.log_every=5
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from tyro.conf import Positional

from zmar_jax.config import load_config, override


def main(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    config: Path,
    workdir: Path,
    kills: int = 10,
    seed: int = 0,
) -> int:
    """Trains in peace and under fire, and compares.

    Args:
      settings: Changes to the configuration, section.key=value.
      config: YAML file of the run, or its name.
      workdir: Two runs, `peace` and `killed`, are made in this folder, which must be new.
      kills: How many times to kill.
      seed: Of the moments.
    """
    if workdir.exists():
        sys.exit(f"{workdir}: exists already; give a new --workdir")
    workdir.mkdir(parents=True)
    steps = override(load_config(config), settings).train.steps
    command = [sys.executable, "-m", "zmar_jax", "train", "--config", str(config), *settings]

    def start(name: str) -> subprocess.Popen:
        log = (workdir / f"{name}.log").open("a")
        return subprocess.Popen([*command, "--workdir", str(workdir / name)], stderr=log)

    peace = start("peace")
    while not _step(workdir / "peace") and peace.poll() is None:
        time.sleep(0.1)
    training = _wait(peace)
    # with the programs compiled by now, starting takes about this long
    starting = _wait(start("peace"))
    print(f"in peace: training took {training:.0f} s, and starting again about {starting:.0f} s")
    moments = random.Random(seed)
    done = 0
    while done < kills:
        before, process = _step(workdir / "killed"), start("killed")
        if done % 2:  # every second kill may hit start-up, the others training and saving
            time.sleep(moments.uniform(0, starting))
        else:
            while _step(workdir / "killed") == before and process.poll() is None:
                time.sleep(0.1)
            time.sleep(moments.uniform(0, 1.5 * training / kills))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            print(f"the run ended before kill {done + 1}; more train.steps give it time")
            break
        done += 1
        print(f"kill {done}: last record of step {_step(workdir / 'killed')}", flush=True)
    _wait(start("killed"))
    different = _differences(*(_leaves(workdir / name, steps) for name in ("peace", "killed")))
    print(f"{len(different)} leaves differ {different[:5]}" if different else "bit for bit equal")
    return 1 if different or not done else 0


def _wait(process: subprocess.Popen) -> float:
    start = time.monotonic()
    if process.wait():
        sys.exit(f"the run failed with exit code {process.returncode}; see its log")
    return time.monotonic() - start


def _step(run: Path) -> int:
    """The last step that a run has recorded, but for a line that a kill has cut."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return json.loads(whole[-1])["step"] if whole else 0


def _leaves(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by its path."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        tree: Any = checkpointer.restore((run / "checkpoints" / str(step) / "state").absolute())
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def _differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    keys = sorted(a.keys() | b.keys())
    return [k for k in keys if k not in a or k not in b or a[k].tobytes() != b[k].tobytes()]


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
