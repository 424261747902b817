"""`train`."""

import time
from typing import Annotated

from tyro.conf import Positional, arg

from zmar_jax.cli.console import UsageError, err, with_the_others
from zmar_jax.files.places import Place
from zmar_jax.runtime import restarts as again


def train(
    settings: Positional[tuple[str, ...]] = (),
    /,
    *,
    config: Place,
    workdir: Place,
    accept_changes: bool = False,
    profile: Annotated[str | None, arg(metavar="FIRST:LAST")] = None,
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None,
    processes: int | None = None,
    process: int | None = None,
    restarts: int = 0,
) -> int:
    """Train a model; started again with the same workdir, it goes on where it was.

    The same command trains on one device, on all devices of a host, and on every host of a TPU
    pod or of a SLURM or Kubernetes job, where the hosts find each other; elsewhere name one with
    --coordinator. SIGTERM saves and ends with exit code 0.

    $ zmar-jax train --config photos_nano --workdir runs/photos

    $ zmar-jax train --config lol_v2_real --workdir runs/lol train.seed=1

    $ zmar-jax train --config photos_nano --workdir gs://bucket/photos

    $ zmar-jax train --config lol_v2_real --workdir gs://bucket/lol --restarts 100

    Args:
      settings: Changes to the configuration, section.key=value.
      config: YAML file of what differs from the published recipe, on this machine or in a bucket,
        or the name of one that comes with the package; an unknown name lists them.
      workdir: Checkpoints, TensorBoard events, metrics.jsonl and validation panels go here: a
        folder, or gs://BUCKET/NAME or s3://BUCKET/NAME.
      accept_changes: Go on although the run was begun with another configuration.
      profile: Steps of which to write a JAX profiler trace to WORKDIR/profile, as 100:110.
      coordinator: Address of the first process, where hosts do not find each other.
      processes: How many processes there are in all, with --coordinator.
      process: Which of them this is, from 0, with --coordinator.
      restarts: How often to start again when the training is killed or loses another host; it goes
        on from its newest checkpoint. Errors in what you gave are not tried again.
    """
    if restarts < 0:
        raise UsageError(f"--restarts must be 0 or more, got {restarts}")
    if restarts and not again.is_child():
        return again.watched(again.this_command(), restarts, err.print)
    import jax

    from zmar_jax.benchmark.utilization import utilization
    from zmar_jax.config import load_config, override
    from zmar_jax.runtime import compilation
    from zmar_jax.runtime.age import process_age
    from zmar_jax.runtime.processes import together
    from zmar_jax.train import train as run

    steps = _steps(profile) if profile else None
    with with_the_others(coordinator, processes, process):
        # not before: the others would wait for one that finds its file wrong
        run_config = together(lambda: override(load_config(config), settings))
        compilation.enable_cache()
        peak = utilization(run_config, jax.devices())
        run(run_config, workdir, steps, accept_changes, peak, time.time() - process_age())
    return 0


def _steps(text: str) -> range:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"--profile must be FIRST:LAST, as 100:110; got {text}")
    return range(int(first), int(last))
