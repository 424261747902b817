"""What compare_torch.py times: a restoration or a train step, in PyTorch and in zmar_jax.

A process runs one of these jobs (compare_workers.py), and neither framework imports the other.
"""

import contextlib
import dataclasses
import os
import resource
import sys
from collections.abc import Callable
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


def torch_job(setting: Setting) -> Job:
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


def jax_job(setting: Setting) -> Job:
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

    from zmar_jax.restore.restorer import Restorer

    restorer, image = Restorer(config, params), inputs["low"]
    b, h, w, _ = image.shape
    programs = restorer.programs(h, w)
    z, results = np.zeros((b, *config.latent_shape(h, w)), np.float32), []
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
    from zmar_jax.runtime.sharding import REPLICATED, make_mesh, shard_batch
    from zmar_jax.train import compile_steps
    from zmar_jax.train.state import state_of

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
