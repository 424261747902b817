"""A training by several processes of simulated devices, for chaos.py: started, watched, read."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from emulators import Gate
from PIL import Image

BUCKET, RUN = "bucket", "run"
TRAIN = Path(__file__).with_name("chaos_train.py")
SMALL = (
    "model.mask_attention=false",
    *("model.dim=2", "model.blocks=[1,1,1]", "model.heads=[1,1,1]", "model.refinement_blocks=1"),
    *("model.flow_additional_steps=1", "model.flow_steps=1", "model.flow_hidden=4"),
    *("data.name=photos", "data.batch_size=4", "data.crop=16", "data.workers=0"),
    *("train.schedule=constant", "train.warmup_steps=2", "train.ema=0.9", "train.keep=2"),
    *("train.log_every=1", "train.validate_every=1000000"),
)


class ChaosError(Exception):
    """The run did something that it must not do."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """So many processes of so many devices each; parameters are split over `fsdp` devices."""

    processes: int
    devices: int
    fsdp: int = 1

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}" + f" fsdp={self.fsdp}" * (self.fsdp > 1)


def photos(folder: Path, count: int = 5) -> Path:
    """A folder of small photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        coarse.resize((48, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


class Hosts:
    """`zmar-jax train --restarts`, once for each process, which write into one bucket."""

    def __init__(
        self,
        folder: Path,
        gate: Gate,
        environment: dict[str, str],
        settings: Sequence[str],
        patience: float,
    ):
        """
        Args:
          folder: of photographs, logs and what the processes keep meanwhile.
          patience: seconds within which a start must have saved a step, and all must have ended
            that were asked to.
        """
        self.folder, self._gate, self._settings = folder, gate, settings
        self._patience = patience
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **environment, "JAX_PLATFORMS": "cpu"}
        self._environment |= {"TMPDIR": str(folder / "tmp")}
        self._environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "programs"))
        self.watchers: list[subprocess.Popen[bytes]] = []
        self.layout = Layout(1, 1)

    def start(self, layout: Layout) -> None:
        """All processes, each watched; they go on from what is in the bucket."""
        settings = ("train.checkpoint_every=1", "train.steps=1000000", "--restarts", "1000")
        self.layout = layout
        self.watchers = self._start(f"s3://{BUCKET}/{RUN}", layout, *settings)

    def in_peace(self, layout: Layout, steps: int) -> Path:
        """The workdir, a folder, of the same run in so many steps, which nothing disturbs."""
        workdir = self.folder / "peace"
        often = (f"train.checkpoint_every={steps}", f"train.steps={steps}")
        self.layout, self.watchers = layout, self._start(str(workdir), layout, *often)
        if any(codes := [process.wait() for process in self.watchers]):
            raise ChaosError(f"the undisturbed run failed: {codes}")
        return workdir

    def _start(self, workdir: str, layout: Layout, *more: str) -> "list[subprocess.Popen[bytes]]":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        data = self.folder / "photos"
        places = (f"data.folder={data}", f"data.val_folder={data}", f"data.data_dir={data}.cache")
        command = [sys.executable, str(TRAIN), "--config", "tiny", "--workdir", workdir, *SMALL]
        command += [*places, *self._settings, f"train.fsdp={layout.fsdp}", *more]
        command += ["--coordinator", address, "--processes", str(layout.processes), "--process"]
        flags = f"--xla_force_host_platform_device_count={layout.devices}"
        with contextlib.ExitStack() as stack:
            logs = [stack.enter_context(self.log(i).open("a")) for i in range(layout.processes)]
            return [
                subprocess.Popen(
                    [*command, str(i)],
                    stdout=log,
                    stderr=log,
                    env=self._environment | {"XLA_FLAGS": flags},
                    start_new_session=True,
                )
                for i, log in enumerate(logs)
            ]

    def log(self, process: int) -> Path:
        return self.folder / f"process{process}.log"

    def training(self, process: int) -> int | None:
        """The process id of what a watcher has started; None between two starts."""
        watcher = self.watchers[process].pid
        with contextlib.suppress(OSError, ValueError):
            return int(Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()[0])
        return None

    def step(self) -> int:
        """The newest step that the bucket has a whole checkpoint of; 0 where it has none."""
        whole = r"/checkpoints/(\d+)/digests\.json$"
        found = (re.search(whole, name) for name in self._gate.names(f"{RUN}/checkpoints/"))
        return max((int(match[1]) for match in found if match), default=0)

    def wait_for_progress(self, steps: int = 1) -> int:
        """The newest step, once there are so many more in the bucket.

        Raises:
          ChaosError: a process has ended, or there is no progress.
        """
        before, deadline = self.step(), time.monotonic() + self._patience
        while (now := self.step()) < before + steps:
            self.check()
            if time.monotonic() > deadline:
                raise ChaosError(f"no checkpoint after step {now} in {self._patience:.0f} s")
            time.sleep(0.1)
        return now

    def check(self) -> None:
        """Raises ChaosError where a watcher has ended, which nobody has asked for."""
        codes = {i: code for i, w in enumerate(self.watchers) if (code := w.poll()) is not None}
        if codes:
            raise ChaosError(f"ended by itself, by process: {codes}")

    def wait_for_end(self) -> list[int]:
        """The exit codes of all processes, which were asked to end.

        Raises:
          ChaosError: they do not.
        """
        deadline = time.monotonic() + self._patience
        try:
            return [w.wait(max(deadline - time.monotonic(), 0.1)) for w in self.watchers]
        except subprocess.TimeoutExpired:
            raise ChaosError(f"not all ended within {self._patience:.0f} s of SIGTERM") from None

    def kill(self) -> None:
        """All processes at once, and what they have started."""
        for watcher in self.watchers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(watcher.pid, signal.SIGKILL)
            watcher.wait()


@contextlib.contextmanager
def ended(hosts: Hosts) -> Iterator[Hosts]:
    """Nothing that was started is left at the end."""
    try:
        yield hosts
    finally:
        hosts.kill()


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, by name: weights, optimizer, counters."""
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        saved: Any = checkpointer.metadata(path).item_metadata
        wanted = jax.tree.map(  # whatever devices it was saved from
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved.tree
        )
        tree: Any = checkpointer.restore(path, args=ocp.args.StandardRestore(wanted))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def strayed(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], begun: dict[str, np.ndarray]
) -> float:
    """The distance of two runs' weights, as a share of how far training has moved them.

    As one number: where a gradient is nothing but rounding, Adam makes a whole step of it.
    """
    names = [name for name in wanted if name.startswith("['params']")]
    apart, gone = (
        float(np.sqrt(sum(np.sum(np.square(a[n] - b[n], dtype=np.float64)) for n in names)))
        for a, b in ((found, wanted), (wanted, begun))
    )
    return apart / gone


def losses(workdir: Path) -> dict[int, float]:
    """By step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in found if "loss" in record}
