"""Programs compiled for TPUs and GPUs that are not there: what they need, how fast at best."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from zmar_jax.benchmark.chips import Gpu
from zmar_jax.benchmark.cost import matrix_multiply_adds
from zmar_jax.benchmark.hlo import COLLECTIVES, Collective, read_program
from zmar_jax.benchmark.kernels import Kernels
from zmar_jax.benchmark.topology import Slice, devices
from zmar_jax.config import Config, ConfigError
from zmar_jax.models import ZmarSNFlow
from zmar_jax.runtime import compilation, sharding
from zmar_jax.runtime.stop import stop_if_asked
from zmar_jax.train import compile_steps, train_step
from zmar_jax.train.state import abstract_state

Task = Literal["train", "inverse"]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program for one slice. All but `seconds` and `images_per_second` is for one device.

    A device is a chip, but one of two cores on v4. `hbm`, what arguments, results and XLA's
    temporaries take, and `hbm_free` are bytes. `flops` are those of bfloat16 products; one of
    float32 counts as `Chip.float32_cost`. `hbm_traffic` is bytes a run
    (`hlo.ProgramCost.traffic`). `compute_seconds`, `memory_seconds` and `collective_seconds` are
    what these take at the chip's peaks; `seconds` is the longest of the three: a bound for this
    code, as no other code was compiled.
    `estimated_seconds` are those of XLA's cost model, without collectives and without what is
    `unestimated` in `kernels`, which is of GPUs alone, as is `triton`.
    `hlo` is the optimised program's text.
    """

    task: Task
    topology: str
    chips: int
    batch_size: int
    crop: int
    policy: str
    compile_seconds: float
    effort: float
    hbm: int
    hbm_free: int
    temporaries: int
    flops: float
    hbm_traffic: int
    collectives: tuple[Collective, ...]
    compute_seconds: float
    memory_seconds: float
    collective_seconds: float
    estimated_seconds: float
    seconds: float
    images_per_second: float
    kernels: tuple[Kernels, ...]
    triton: bool
    remark: str
    hlo: str = dataclasses.field(default="", repr=False)


class TooLarge(Exception):
    """A program that does not fit the chips' memory."""


def compile_for(
    task: Task, config: Config, target: Slice, effort: float = 0.0, triton: bool = True
) -> Compiled:
    """Compiles `train_step`, or `inverse` on the same batch, for a slice; runs nothing.

    Args:
      config: batch, crop, model and recipe.
      effort: -1.0 to 0.0, XLA's at making the program fast; less compiles faster.
      triton: as `compilation.gpu_options` takes it; without effect on TPUs.

    Raises:
      ConfigError: the compiler is missing, or the devices do not divide the batch; or a program for
        a GPU that XLA compiles without Triton alone.
      TooLarge: says how much memory is needed, and how much there is.
    """
    mesh = sharding.make_mesh(config.train.fsdp, devices(target))
    sharding.check_batch(config.data.batch_size, config.train.accumulate, mesh)
    fn, program, args = (_train if task == "train" else _inverse)(config, mesh)
    chip = target.chip
    flops = 2 * matrix_multiply_adds(fn, *args, float32_cost=chip.float32_cost)[1] / mesh.size
    options = compilation.effort_options(effort)
    if isinstance(chip, Gpu):
        options |= compilation.gpu_options(chip.capability, triton)
    start = time.perf_counter()
    try:
        compiled = program.compile(*args, options=options)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" in str(e):
            used = re.search(r"Used \S+ of \S+ hbm", str(e))
            raise TooLarge(used[0] if used else str(e).splitlines()[0]) from e
        if "output tile sizes" in str(e):
            reason = str(e).splitlines()[0][:160]
            raise ConfigError(
                "XLA, which tries one form alone without a GPU, has none for Triton "
                f"({reason}...); say --no-triton to compile this program for cuBLAS"
            ) from e
        raise
    seconds = time.perf_counter() - start
    stop_if_asked()
    found = _report(task, config, target, effort, flops, compiled, seconds)
    return dataclasses.replace(found, triton=triton and isinstance(chip, Gpu))


def _report(
    task: Task,
    config: Config,
    target: Slice,
    effort: float,
    flops: float,
    compiled: Any,
    compile_seconds: float,
) -> Compiled:
    chip, memory = target.chip, compiled.memory_analysis()
    hlo = compiled.as_text()
    program = read_program(hlo)
    hbm = memory.argument_size_in_bytes + memory.output_size_in_bytes
    hbm += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    compute = flops * chip.cores / chip.flops
    traffic = program.traffic * chip.cores / chip.hbm_bandwidth
    # the other collectives move an array once where an all-reduce moves it twice
    moved = sum(c.size if c.kind == "all-reduce" else c.size / 2 for c in program.collectives)
    collectives = target.all_reduce_seconds(moved)
    seconds = max(compute, traffic, collectives)
    on_gpu = isinstance(chip, Gpu)
    estimated = sum(k.estimated for k in program.kernels if k.kind not in COLLECTIVES)
    return Compiled(
        task=task,
        topology=target.name,
        chips=target.chips,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        policy=config.model.policy,
        compile_seconds=compile_seconds,
        effort=effort,
        hbm=hbm,
        hbm_free=chip.hbm // chip.cores - hbm,
        temporaries=memory.temp_size_in_bytes,
        flops=flops,
        hbm_traffic=program.traffic,
        collectives=program.collectives,
        compute_seconds=compute,
        memory_seconds=traffic,
        collective_seconds=collectives,
        estimated_seconds=program.cycles / chip.clock + estimated,
        seconds=seconds,
        images_per_second=config.data.batch_size / seconds,
        kernels=program.kernels if on_gpu else (),
        triton=False,
        remark=f"compiled for a {'GPU' if on_gpu else 'TPU'}, not measured",
        hlo=hlo,
    )


def largest_batch(
    task: Task, config: Config, target: Slice, first: Compiled, say: Say = lambda _: None
) -> int:
    """The largest batch that fits the slice, a multiple of its devices, by bisection.

    The first guess takes memory to grow linearly with the batch, as between `first` and a
    compilation of half of it. Each further compilation tells whether one more batch fits: the
    guess, then a larger one while it fits, then the middle between the largest that fits and the
    smallest that does not. The search ends when these two are neighbours.

    Args:
      first: `compile_for`'s result for the batch in `config`.
      say: told of each compilation.

    Returns:
      0 where not even one image a device fits.
    """
    step = target.chips * target.chip.cores * config.train.accumulate
    fits, fails = first.batch_size // step, None

    def hbm(units: int) -> int | None:
        data = dataclasses.replace(config.data, batch_size=units * step)
        try:
            one = dataclasses.replace(config, data=data)
            found = compile_for(task, one, target, first.effort, first.triton)
        except TooLarge as e:
            say(f"batch {units * step}: does not fit ({e})")
            return None
        say(f"batch {units * step}: {found.hbm / 2**30:.2f} GiB a device")
        # libtpu was seen to compile what takes more than there is with its arguments
        return found.hbm if found.hbm_free >= 0 else None

    say(f"batch {first.batch_size}: {first.hbm / 2**30:.2f} GiB a device")
    other = max(fits // 2, 1) if fits > 1 else 2
    trial, guesses, further = other, [], 1
    if first.hbm_free < 0:
        fits, fails = 0, fits
    elif (used := hbm(other)) is None:
        return fits * step
    else:
        # XLA may find room for more at the price of time, and then memory hardly grows
        growth = max((first.hbm - used) / (fits - other), first.hbm / (8 * fits))
        trial = max(int(fits + first.hbm_free / growth), fits + 1)
        guesses = [trial - 1]
    while fails is None or fails - fits > 1:
        if hbm(trial) is None:
            fails = trial
        else:
            fits = trial
        near = guesses.pop() if guesses else fits
        if fails is None:
            trial, further = fits + further, 2 * further
        else:
            trial = near if fits < near < fails else (fits + fails) // 2
    return fits * step


def _train(config: Config, mesh: Any) -> tuple[Any, sharding.Program, tuple[Any, ...]]:
    state = abstract_state(config, mesh)
    image = _image(config, mesh, 3, jnp.uint8)
    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    key = jax.ShapeDtypeStruct(
        key.shape, key.dtype, sharding=NamedSharding(mesh, sharding.REPLICATED)
    )
    return (
        train_step,
        compile_steps(state, mesh)[1],
        (state, {"low": image, "gt": image}, key),
    )


def _inverse(config: Config, mesh: Any) -> tuple[Any, sharding.Program, tuple[Any, ...]]:
    model, params = ZmarSNFlow(config.model), abstract_state(config, mesh).params

    def inverse(params: Any, z: Any, lr: Any, mask: Any) -> Any:
        params = sharding.constrain(params, sharding.REPLICATED)
        return model.apply({"params": params}, z, lr, mask, method="inverse")

    sizes = config.model
    z = _image(config, mesh, sizes.latent_channels, jnp.float32, sizes.stride)
    lr, mask = (_image(config, mesh, channels, jnp.float32) for channels in (3, 1))
    program = sharding.jit(inverse, mesh, out_shardings=NamedSharding(mesh, sharding.BATCH))
    return inverse, program, (params, z, lr, mask)


def _image(
    config: Config, mesh: Any, channels: int, dtype: Any, factor: int = 1
) -> jax.ShapeDtypeStruct:
    size = config.data.crop // factor
    return jax.ShapeDtypeStruct(
        (config.data.batch_size, size, size, channels),
        dtype,
        sharding=NamedSharding(mesh, sharding.BATCH),
    )
