"""What one sees of a training run: progress, TensorBoard, metrics.jsonl and panels.

```
WORKDIR/metrics.jsonl          one line for each log step and each validation
WORKDIR/tensorboard/
WORKDIR/panels/STEP.png        rows of low | restored | gt
```
"""

import collections
import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import image as image_summary

from zmar_jax.files.errors import errors_as
from zmar_jax.files.replacing import write_whole
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.runtime.memory import peak_memory
from zmar_jax.runtime.processes import primary
from zmar_jax.train.about import FILE
from zmar_jax.train.goodput import Goodput
from zmar_jax.train.wandb import Wandb
from zmar_jax.weights.checkpoint import CheckpointError

_GAP = 4
_BOARD = "tensorboard"
_PART = 1 << 20
"""Bytes after which TensorBoard gets another file: into a bucket a file goes whole each time."""
_EVENT: Any = event_pb2  # generated code, which type checkers cannot see into
_SUMMARY: Any = summary_pb2


class RunLog:
    """Shows and records a run. Only the first process writes; in the others nothing happens.

    ```
    with RunLog(workdir, steps, batch_size, start) as log:
        with log.timed("data"):
            batch = next(batches)
        state, metrics = train_step(state, batch, rng)
        log.advance(step)
        log.scalars(step, {"loss": ..., "bits_per_dim": ...})  # at log steps
    ```
    Each log step is a line; on a terminal there is a progress bar below them.
    """

    def __init__(
        self,
        workdir: str | Path,
        steps: int,
        batch_size: int,
        start: int = 0,
        console: Console | None = None,
        recorded: Callable[[], None] = lambda: None,
        about: Mapping[str, Any] | None = None,
        utilization: Callable[[float], float] | None = None,
        begun: float | None = None,
    ):
        """Goes on with the records of `workdir` after step `start`; later ones are dropped.

        Args:
          steps: of the whole run; batch_size: images of a step, over all hosts.
          recorded: called in the first process when something was written.
          about: becomes WORKDIR/run.json; `config` in it names the loggers (`train.loggers`).
          utilization: from images a second to the share of what the devices can do (MFU).
          begun: when this start of the run began, in seconds since 1970; by default now.

        Raises:
          CheckpointError: the records cannot be written.
        """
        self.workdir: Path = Path(workdir)
        self.steps, self.batch_size = steps, batch_size
        self.console: Console = console or Console(
            stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self._spent: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._since, self._logged = time.perf_counter(), start
        self._bar: Progress | None = None
        self._started: dict[str, float] = {}
        self._recorded, self._utilization = recorded, utilization
        self._about, self._begun = dict(about or {}), begun or time.time()
        self._loggers = self._about.get("config", {}).get("train", {}).get("loggers", [_BOARD])
        self._wandb: Wandb | None = None
        self._name, self._parts = _event_file(), 0
        self._events = self.workdir / "tensorboard" / self._name
        if primary():
            self._open(start)

    def _open(self, start: int) -> None:
        # what TensorBoard has seen of later steps is no longer true
        restart = _EVENT.SessionLog(status=_EVENT.SessionLog.START)
        with _writing(self.workdir):
            self._events.parent.mkdir(parents=True, exist_ok=True)
            if self._about:
                write_whole(self.workdir / FILE, json.dumps(self._about, indent=1) + "\n")
            kept = _cut(self.workdir / "metrics.jsonl", start)
        self._goodput = Goodput(_last(kept), self._begun)
        self._event(start + 1, file_version="brain.Event:2")
        self._event(start + 1, session_log=restart)
        if "wandb" in self._loggers:
            self._wandb = Wandb(self.workdir, self._about)
        if self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn())
            # a step may take many seconds
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=self.console, speed_estimate_period=600
            )
            self._bar.add_task("", total=self.steps, completed=start)
            self._bar.start()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Counts the time of a block as "data", or as anything else that is not computing."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - begin

    def started(self, seconds: float, text: str) -> None:
        """Shows how long the first step was in coming; the next record has its `start_seconds`."""
        self._started = {"start_seconds": seconds}
        self.message(text)

    def advance(self, step: int) -> None:
        """To be called after each step: moves the bar."""
        if self._bar:
            self._bar.update(TaskID(0), completed=step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the values of a log step with speed, times of a step and memory, and shows them.

        Times are means over the steps since the last call. Computing is what is neither "data"
        nor another timed block; so read a value of the step, which waits for it, before the call.

        Raises:
          CheckpointError: the records cannot be written.
        """
        now, steps = time.perf_counter(), max(step - self._logged, 1)
        data = self._spent["data"] / steps
        compute = (now - self._since - sum(self._spent.values())) / steps
        self._since, self._logged = now, step
        spent = dict(self._spent)
        self._spent.clear()
        if not primary():
            return
        costs = {
            "images_per_second": self.batch_size / max(data + compute, 1e-9),
            "data_seconds": data,
            "compute_seconds": compute,
            "memory_bytes": peak_memory(),
            **self._goodput.record(spent, compute * steps, time.time()),
            **self._started,
        }
        self._started = {}
        if self._utilization:
            costs["mfu"] = self._utilization(costs["images_per_second"])
        values = {name: float(value) for name, value in values.items()}
        self._record(step, values, "train")
        self._record(step, costs, "cost")
        self._append({"step": step, **values, **costs})
        self._show(step, values, costs)
        self._recorded()

    def validation(
        self, step: int, values: Mapping[str, Any], panels: np.ndarray | None = None
    ) -> None:
        """Records a validation, as `val_NAME` in metrics.jsonl, and a picture made by `panel`.

        Raises:
          CheckpointError, ImageError: the records, or the picture, cannot be written.
        """
        if not primary():
            return
        values = {name: float(value) for name, value in values.items()}
        self._append({"step": step, **{f"val_{name}": value for name, value in values.items()}})
        if panels is not None:
            write_photo(self.workdir / "panels" / f"{step:06d}.png", Photo(panels))
            picture = image_summary("validation/panels", panels, dataformats="HWC")
            self._event(step, summary=picture)
        self._record(step, values, "validation")
        self.message(f"step {step}  validation  {_line(values)}")
        self._recorded()

    def message(self, text: str) -> None:
        """Shows a line, above the bar where there is one."""
        if primary():
            self.console.print(text)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar:
            self._bar.stop()
        if self._wandb:
            self._wandb.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, step: int, values: Mapping[str, float], costs: Mapping[str, float]) -> None:
        data, compute = costs["data_seconds"], costs["compute_seconds"]
        speed = costs["images_per_second"]
        left = timedelta(seconds=round((data + compute) * (self.steps - step)))
        self.message(
            f"step {step}/{self.steps}  {_line(values)}  {speed:.3g} images/s  "
            f"data {_duration(data)}  compute {_duration(compute)}  "
            f"memory {costs['memory_bytes'] / 2**30:.2f} GiB  left {left}"
        )

    def _record(self, step: int, values: Mapping[str, float], group: str) -> None:
        if self._wandb:
            self._wandb.log(step, {f"{group}/{name}": value for name, value in values.items()})
        points = [{"tag": f"{group}/{name}", "simple_value": v} for name, v in values.items()]
        self._event(step, summary=_SUMMARY.Summary(value=points))

    def _event(self, step: int, **content: Any) -> None:
        if _BOARD not in self._loggers:
            return
        # tensorboardX's SummaryWriter would hang once its thread has met a full disk
        data = _EVENT.Event(step=step, wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, _checksum(length), data, _checksum(data))
        with _writing(self._events), self._events.open("ab") as file:
            file.write(b"".join(parts))
            full = file.tell() > _PART
        if full:  # TensorBoard reads one file after the other, by their names
            self._parts += 1
            self._events = self._events.with_name(f"{self._name}.{self._parts:06d}")
            self._event(step, file_version="brain.Event:2")

    def _append(self, record: Mapping[str, Any]) -> None:
        # JSON has no NaN
        plain = {k: None if not math.isfinite(v) else v for k, v in record.items()}
        path = self.workdir / "metrics.jsonl"
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


def _event_file() -> str:
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def panel(*columns: Sequence[np.ndarray]) -> np.ndarray:
    """A picture with a row for each example: low | restored | gt.

    Args:
      columns: of each kind as many images, uint8, or float with 1 = white, [H, W, 3]; rows may
        differ in size.

    Returns:
      uint8 [H, W, 3], white between the images.
    """
    rows = [
        np.concatenate([_framed(image) for image in row], axis=1)
        for row in zip(*columns, strict=True)
    ]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)[:-_GAP, :-_GAP]


def _framed(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(np.nan_to_num(image, posinf=1, neginf=0), 0, 1))
    return np.pad(image.astype(np.uint8), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    def problem(e: Any) -> str:
        return (
            f"{path}: cannot be written ({e.strerror}); mend that and start again with the same "
            "--workdir"
        )

    with errors_as(CheckpointError, problem, OSError):
        yield


def _cut(path: Path, step: int) -> str:
    """Drops what was recorded after `step`, and a line that a killed process left half-written;
    returns the rest."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if _until(line, step))
    if kept != text:
        write_whole(path, kept)
    return kept


def _last(lines: str) -> dict[str, Any]:
    """The last record of a log step; an empty one where there is none."""
    found = [json.loads(line) for line in lines.splitlines()]
    return next((record for record in reversed(found) if "run_seconds" in record), {})


def _until(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False


def _line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
