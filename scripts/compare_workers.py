"""One process per framework: it loads the weights once and then runs when it is told to.

Each framework has its own process because their thread pools compete in a shared one, and
because the peak memory of a process is then the framework's. Neither imports the other.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

LEARNING_RATE = 2e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a worker runs. `folder` holds weights.safetensors and inputs.npz (NHWC)."""

    framework: str
    task: str
    policy: str
    device: str
    threads: int
    """Cores that the process may use; 0 for all."""
    remat: str
    """zmar_jax's `train.remat`."""
    config: dict[str, Any]
    """`dataclasses.asdict` of a ModelConfig."""
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.framework} ({self.task}, {self.policy})"


@dataclasses.dataclass(frozen=True)
class Job:
    """A task that has run once, on `device` by its own name.

    `run` does it again and waits for it; `output` and `peak` tell about all runs.
    """

    run: Callable[[], None]
    output: Callable[[], np.ndarray]
    peak: Callable[[], int]
    device: str


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds on the clock, and of all cores together. On a GPU only the first says much."""

    seconds: float
    cpu_seconds: float


class WorkerError(ValueError):
    """A worker could not do what it was told."""


class Worker:
    """A started process, its first run (which compiles) behind it.

    Raises:
      WorkerError: the framework's own words, or how the process ended.
    """

    def __init__(self, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.setting = setting
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setting), daemon=True)
        self._process.start()
        theirs.close()
        self.first_call, self.device = self._answer()

    def run(self) -> Run:
        """Once more."""
        return self._ask("run")

    def output(self) -> np.ndarray:
        """Restored pixels [B, H, W, 3], or the loss of every train step so far."""
        return self._ask("output")

    def peak(self) -> int:
        """The most memory held so far, bytes: the process's on a CPU, else the GPU's."""
        return self._ask("peak")

    def stop(self) -> None:
        """Ends the process, and waits until it holds no memory any more.

        It notices that nobody will tell it anything more.
        """
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()

    def _ask(self, command: str) -> Any:
        # one that is gone answers nothing, which says more than that it does not listen
        with contextlib.suppress(OSError):
            self._pipe.send(command)
        return self._answer()

    def _answer(self) -> Any:
        try:
            problem, value = self._pipe.recv()
        except (EOFError, OSError) as e:
            self._process.join()
            code = self._process.exitcode
            raise WorkerError(
                f"{self.setting.name}: its process ended with exit code {code}"
                + ("; out of memory? try a smaller size or batch" if code == -9 else "")
            ) from e
        if problem:
            self.stop()
            raise WorkerError(f"{self.setting.name}: {problem}")
        return value


def _serve(pipe: Connection, setting: Setting) -> None:
    try:
        start = time.perf_counter()
        _limit_cores(setting.threads)
        _compile_anew(setting.folder)
        job = _jax_job(setting) if setting.framework == "jax" else _torch_job(setting)
        pipe.send((None, (time.perf_counter() - start, job.device)))
        while True:
            try:
                command = pipe.recv()
            except EOFError:  # stopped, or the parent is gone
                return
            pipe.send((None, _timed(job.run) if command == "run" else getattr(job, command)()))
    except (ValueError, RuntimeError, MemoryError, ImportError) as e:
        # anything else is a bug: its traceback is printed and the pipe closes
        text = " ".join(str(e).split())[:400]
        pipe.send((f"{type(e).__name__}: {text}", None))


def _limit_cores(threads: int) -> None:
    # before a framework is imported: both size their thread pools by the cores they may use
    if threads:
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError("--threads needs Linux; leave it out to use all cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _compile_anew(folder: Path) -> None:
    # else the first call takes what an earlier run has left on disk
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _timed(run: Callable[[], None]) -> Run:
    cpu, start = time.process_time(), time.perf_counter()
    run()
    return Run(time.perf_counter() - start, time.process_time() - cpu)


def process_peak() -> int:
    """The most memory that this process has held, bytes.

    Not `ru_maxrss` where Linux has something better: that starts at the parent's size.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _inputs(setting: Setting) -> dict[str, np.ndarray]:
    with np.load(setting.folder / "inputs.npz") as file:
        return dict(file)


# ---------------------------------------------------------------------------- PyTorch


def prepare(device: str) -> Any:
    """The PyTorch device, and float32 that means it: zmar_jax's does, too.

    Raises:
      ValueError: there is no such device.
    """
    import torch  # pyright: ignore[reportMissingImports]

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this PyTorch sees no CUDA device; use --device cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


def _torch_job(setting: Setting) -> Job:
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file
    from torch_encoder import Sizes
    from torch_model import ZmarSNFlow, network_input

    device = prepare(setting.device)
    torch.backends.cudnn.benchmark = True
    model = ZmarSNFlow(Sizes.of(setting.config))
    model.load_state_dict(load_file(setting.folder / "weights.safetensors"), strict=True)
    model.to(device)
    arrays = {
        k: torch.from_numpy(a.transpose(0, 3, 1, 2).copy()).to(device)
        for k, a in _inputs(setting).items()
    }
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=setting.policy == "bfloat16")
    compiled: Any = (
        torch.compile if setting.framework == "torch.compile" else lambda function: function
    )
    results: list[Any] = []

    def restore() -> None:
        with torch.inference_mode(), mixed:
            results[:] = [function(arrays["low"])]
        synchronize()

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            loss = function(arrays["gt"], *image, arrays["noise"])[2].mean()
        loss.backward()
        optimizer.step()
        results.append(loss.detach())
        synchronize()

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def output() -> np.ndarray:
        if setting.task == "train":
            return torch.stack(results).float().cpu().numpy()
        return results[0].permute(0, 2, 3, 1).float().cpu().numpy()

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else process_peak()

    if setting.task == "restore":
        run, function = restore, compiled(model.restore)
    else:
        run, function = train, compiled(model)
        image = network_input(arrays["low"] / 255)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    run()
    if device.type == "cpu":
        return Job(run, output, peak, "cpu")
    # cudnn.benchmark has tried algorithms whose workspaces no later run holds
    torch.cuda.reset_peak_memory_stats()
    return Job(run, output, peak, torch.cuda.get_device_name())


# -------------------------------------------------------------------------------- JAX


def _jax_job(setting: Setting) -> Job:
    os.environ["JAX_PLATFORMS"] = setting.device
    # PyTorch may take all of the GPU, where JAX would stop at three quarters
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")
    import jax

    from zmar_jax import torch_port
    from zmar_jax.config import ModelConfig

    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as e:  # without a plugin JAX asserts, and says nothing
        raise ValueError(
            f"this JAX sees no {setting.device} device; pip install 'zmar-jax[cuda]' ({e})"
        ) from e
    sizes: dict[str, Any] = {**setting.config, "policy": setting.policy}
    config = ModelConfig(**sizes)
    file = setting.folder / "weights.safetensors"
    params = torch_port.to_params(torch_port.read_state_dict(file), config)
    inputs = _inputs(setting)
    if setting.task == "restore":
        run, output = _jax_restore(config, params, inputs)
    else:
        run, output = _jax_train(config, params, inputs, setting.remat)

    def peak() -> int:
        if device.platform == "cpu":
            return process_peak()
        return device.memory_stats()["peak_bytes_in_use"]

    run()
    return Job(run, output, peak, device.device_kind)


def _jax_restore(config: Any, params: Any, inputs: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import jax

    from zmar_jax.restore import Restorer

    restorer, image = Restorer(config, params), inputs["low"]
    b, h, w, _ = image.shape
    programs = restorer.programs(h, w)
    z, results = np.zeros((b, h // 8, w // 8, 192), np.float32), []
    # PyTorch's inputs lie on the device, too, before the clock starts
    variables, image, z = jax.device_put((restorer.variables, image, z), jax.devices()[0])

    def run() -> None:
        restored = programs.decode(variables, z, programs.encode(variables, image))
        results[:] = [jax.block_until_ready(restored)]

    return run, lambda: np.asarray(results[0])


def _jax_train(
    config: Any, params: Any, inputs: dict[str, np.ndarray], remat: Any
) -> tuple[Any, Any]:
    import jax
    from jax.sharding import NamedSharding

    from zmar_jax.config import Config, TrainConfig
    from zmar_jax.sharding import REPLICATED, make_mesh, shard_batch
    from zmar_jax.state import state_of
    from zmar_jax.train import compile_steps

    recipe = TrainConfig(
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_steps=0,
        release_warmup=False,
        weight_decay_encoder=0.0,
        remat=remat,
    )
    # one device, as PyTorch
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    state = jax.device_put(
        state_of(Config(config, train=recipe), params), NamedSharding(mesh, REPLICATED)
    )
    batch, losses = shard_batch(inputs, mesh), []
    train_step = compile_steps(state, mesh)[1].compile(state, batch, key)

    def run() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, batch, key))
        losses.append(metrics["loss"])

    return run, lambda: np.asarray(losses, np.float32)
