"""The training loop: begins or resumes a run, steps, looks, saves."""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from zmar_jax.config import Config, ConfigError
from zmar_jax.data.pipeline import Loader, make_loader
from zmar_jax.data.sources import Progress
from zmar_jax.files.places import place
from zmar_jax.models import param_shapes
from zmar_jax.runtime import sharding
from zmar_jax.runtime.processes import agree, primary, together
from zmar_jax.runtime.stop import stop_if_asked
from zmar_jax.torch_port import WeightsError
from zmar_jax.train import hosts
from zmar_jax.train.about import about
from zmar_jax.train.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from zmar_jax.train.checkpoints import RunCheckpoints
from zmar_jax.train.lock import only_training
from zmar_jax.train.log import RunLog, panel
from zmar_jax.train.profile import Profile
from zmar_jax.train.start import Start
from zmar_jax.train.state import TrainState, abstract_state, create_sharded_state, state_of
from zmar_jax.train.step import Metrics, check_memory, compile_steps, health
from zmar_jax.train.stop import stop_signal
from zmar_jax.train.trainable import trained
from zmar_jax.train.validation import Validator
from zmar_jax.weights import Weights, load_weights
from zmar_jax.weights.checkpoint import CheckpointError


class TrainingError(ValueError):
    """A run that cannot go on; the message says why, and where its last good weights are."""


def train(
    config: Config,
    workdir: str | Path,
    profile: range | None = None,
    accept_changes: bool = False,
    utilization: Callable[[float], float] | None = None,
    begun: float | None = None,
) -> int:
    """Trains until `config.train.steps`, going on from the newest checkpoint in `workdir`.

    All processes of a run make this call. SIGTERM, or Ctrl-C, saves and ends.

    Args:
      workdir: a folder, or the URL of one in a bucket (`files.places`).
      profile: steps of which a JAX profiler trace is written to WORKDIR/profile.
      accept_changes: go on although the run was begun with another configuration.
      utilization: from images a second to the share of what the devices can do, to be recorded.
      begun: when this start was, in seconds since 1970; by default now.

    Returns:
      The number of steps done.

    Raises:
      ValueError: bad data or configuration, weights in `train.init` that are missing or of another
        model, a run that was begun with another configuration or that another training is
        writing, a disk that is full, too little memory, `max_bad_steps` steps in a row without a
        finite gradient, or hosts that differ in configuration, versions, devices, data, masks or
        weights.
    """
    where, begin = place(workdir), Start(begun)
    agree(hosts.settings(config, accept_changes))
    mesh = sharding.make_mesh(config.train.fsdp)
    sharding.check_batch(config.data.batch_size, config.train.accumulate, mesh)
    trained(param_shapes(config.model), config.train.trainable)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    with (
        stop_signal() as stopping,
        only_training(where, console.print) as (folder, bucket),
        contextlib.ExitStack() as stack,
    ):
        say = functools.partial(_say, console, str(folder), str(where))
        facts = about(config, mesh, where)
        with begin.timed("looking at the run"):
            kept = open_checkpoints(folder, bucket, config, say, accept_changes, facts)
        checkpoints = stack.enter_context(kept)
        going_on = checkpoints.latest_good
        with begin.timed("opening data"):
            inputs = together(lambda: _open(config, mesh, going_on is None, say))
        loader, validator, weights = inputs
        agree(hosts.inputs(loader, validator.loader, weights, going_on and going_on.name))
        with begin.timed("reading the checkpoint"):
            state, data_state = _begin(config, mesh, checkpoints, weights, say)
        if data_state is not None:
            loader.set_state(data_state, accept_changes)
            validator.check_state(data_state, accept_changes)
            together(lambda: _check_init(config, data_state.get("init"), accept_changes))
        start = int(state.step)
        say(_summary(config, mesh, state))
        if start >= config.train.steps:
            say(
                f"nothing to do: all {config.train.steps} steps are trained; for more, start again "
                "with a higher train.steps and --accept-changes"
            )
            return start
        size, steps = config.data.batch_size, config.train.steps
        put = functools.partial(bucket.put_log, say) if bucket else lambda: None
        told = (console, put, facts, utilization, begin.begun)
        with together(lambda: RunLog(folder, steps, size, start, *told)) as log:
            begun_from = (data_state or {}).get("init", weights and weights.checksum)
            kept_by = (checkpoints, log, begun_from, begin)
            run = _Run(config, mesh, state, loader, validator, *kept_by)
            with Profile(profile, folder / "profile") as trace:
                while run.step < config.train.steps and not stopping(run.step):
                    trace.at(run.step, run.state)
                    run.advance()
                    run.record_and_save()
            run.end()
        stopped = run.step < config.train.steps
        say(f"stopped at step {run.step}; the same command goes on" if stopped else "done")
    return run.step


class _Run:
    """What the loop carries from step to step."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        state: TrainState,
        loader: Loader,
        validator: Validator,
        checkpoints: RunCheckpoints | BucketCheckpoints,
        log: RunLog,
        begun_from: str | None,
        begin: Start,
    ):
        """begun_from: the checksum of the weights in `train.init`, if it named some."""
        self.config, self.mesh, self.state = config.train, mesh, state
        self.loader, self.validator, self.checkpoints, self.log = (
            loader,
            validator,
            checkpoints,
            log,
        )
        self.begun_from, self.begin = begun_from, begin
        self.step = int(state.step)
        self.rng = jax.random.fold_in(jax.random.key(config.train.seed), 1)
        self.initialise, self.step_program = compile_steps(state, mesh)
        self.health = sharding.jit(health, mesh)
        self.metrics: Metrics = {}
        self.unrecorded: tuple[int, Metrics] | None = None
        """A log step, and its values, which may not be computed yet."""
        self.bad_steps = int(state.bad_steps)

    def advance(self) -> None:
        """One batch: the first initialises the actnorms, the others train."""
        with self.log.timed("data"):
            batch = sharding.shard_batch(next(self.loader), self.mesh)
        if self.step == 0:
            with self.log.timed("compiling"), self.begin.timed("compiling"):
                program = self.initialise.compile(self.state, batch, self.rng)
                # hosts wait for each other here: within a program, not for longer than 30 s
                together(lambda: None)
                self.state = program(self.state, batch, self.rng)
            self.step, self.bad_steps = int(self.state.step), int(self.state.bad_steps)
        else:
            before = self.metrics
            if not before:  # apart, or it would spoil the speed that the first log step shows
                with self.log.timed("compiling"), self.begin.timed("compiling"):
                    self.train_step = self.step_program.compile(self.state, batch, self.rng)
                    together(lambda: check_memory(self.train_step, self.mesh))
            self.state, self.metrics = self.train_step(self.state, batch, self.rng)
            self.step += 1
            if before:  # one step late: reading the last one's would leave the device idle
                self.bad_steps = int(before["bad_steps"])
                if seconds := self.begin.trained():
                    self.log.started(seconds, str(self.begin))
                self.record()
        self.log.advance(self.step)
        if self.bad_steps >= self.config.max_bad_steps:
            self._give_up()

    def record_and_save(self) -> None:
        """Validates and saves where the step is due; the next step records what is to be logged."""
        if self.step == 0:  # the first batch was not finite
            return
        due = functools.partial(_due, self.step)
        if self.metrics and due(self.config.log_every):
            self.unrecorded = self.step, self.metrics | self.health(self.state.params)
        # what is saved without scores gets none later, and is passed over for one that has them
        if self.step in (1, self.config.steps) or due(self.config.validate_every):
            self.save(self.validate())
        elif due(self.config.checkpoint_every):
            self.save()

    def record(self) -> None:
        """Writes down the log step that is due, which waits for its values."""
        if self.unrecorded:
            step, values = self.unrecorded
            self.unrecorded = None
            self.log.scalars(step, {name: float(value) for name, value in values.items()})

    def validate(self) -> dict[str, float]:
        """Scores of the moving average, where there is one, else of the weights."""
        self.record()
        with self.log.timed("validation"), self.begin.timed("validating"):
            params = self.state.params if self.state.ema is None else self.state.ema
            scores, panels = self.validator(params)
            columns = list(zip(*panels, strict=True))[1:]
            # other processes may have had all the pictures
            self.log.validation(self.step, scores, panel(*columns) if columns else None)
        return scores

    def save(self, scores: dict[str, float] | None = None) -> None:
        self.record()
        with self.log.timed("saving"):
            data = self.loader.get_state() | self.validator.get_state() | {"init": self.begun_from}
            self.checkpoints.save(self.step, self.state, data, scores)

    def end(self) -> None:
        """Saves where the run was stopped; returns when all is on the disk."""
        self.record()
        if 0 < self.step < self.config.steps:
            self.save()
        self.checkpoints.wait()

    def _give_up(self) -> None:
        self.checkpoints.wait()
        good = self.checkpoints.latest_good
        raise TrainingError(
            f"step {self.step}: {self.bad_steps} steps in a row without a finite loss and "
            f"gradient; none of them changed the weights, whose last checkpoint is {good}; look at "
            "scale_min and condition_max in metrics.jsonl and for broken pictures, or go on with a "
            "lower train.learning_rate or train.clip_norm and --accept-changes"
        )


def _open(
    config: Config, mesh: Mesh, begins: bool, say: Callable[[str], None]
) -> tuple[Loader, Validator, Weights | None]:
    """What this host reads: data, and the weights that a run begins from if it names some."""
    reading = _reading(say)
    loader = make_loader(
        config.data,
        "train",
        jax.process_index(),
        jax.process_count(),
        reading,
        brightness=config.model.brightness,
        tell=say,
    )
    named = config.train.init if begins else None
    weights = None if named is None else load_weights(named)
    return loader, Validator(config, mesh, say, reading), weights


def _begin(
    config: Config,
    mesh: Mesh,
    checkpoints: RunCheckpoints | BucketCheckpoints,
    weights: Weights | None,
    say: Callable[[str], None],
) -> tuple[TrainState, Any]:
    """The state to go on from, and the loader's, None where the run begins."""
    if restored := checkpoints.restore_latest(abstract_state(config, mesh)):
        return restored[1:]
    if weights is not None:
        return _from_weights(config, mesh, weights, say), None
    return create_sharded_state(config, jax.random.key(config.train.seed), mesh), None


def _check_init(config: Config, before: str | None, accept_changes: bool) -> None:
    """Raises ConfigError where `train.init` names other weights than the run was begun from.

    Weights that are not there any more are none: the run goes on without them.
    """
    named = config.train.init
    if named is None or before is None or accept_changes:
        return
    with contextlib.suppress(WeightsError, CheckpointError):
        if (now := load_weights(named).checksum) != before:
            raise ConfigError(
                f"{named}: other weights (checksum {now}) than this run was begun from "
                f"({before}); leave train.init as it was, or begin another run"
            )


def _from_weights(
    config: Config, mesh: Mesh, weights: Weights, say: Callable[[str], None]
) -> TrainState:
    path = config.train.init
    if weights.source != "weights":
        say(f"{path}: {weights.source}")
    like = abstract_state(config, mesh)
    if jax.tree.map(jnp.shape, weights.params) != jax.tree.map(jnp.shape, like.params):
        theirs, ours = dataclasses.asdict(weights.config), dataclasses.asdict(config.model)
        differ = [f"{k}: {theirs[k]}, not {ours[k]}" for k in ours if theirs[k] != ours[k]]
        raise ConfigError(
            f"{path}: weights of another model than the section `model` of the configuration "
            f"describes ({'; '.join(differ)}); change it, or train.init"
        )
    for field in dataclasses.fields(config.model):
        theirs, ours = (getattr(c, field.name) for c in (weights.config, config.model))
        # a policy is how numbers are computed, and an expansion is known by its widths
        if theirs != ours and field.name not in ("policy", "ffn_expansion"):
            say(f"warning: {path} is a model with {field.name} {theirs}, this run has {ours}")
    params = jax.tree.map(np.asarray, weights.params)
    create = functools.partial(state_of, config, platform=sharding.platform(mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return sharding.jit(create, mesh, out_shardings=shardings)(params)


def _summary(config: Config, mesh: Mesh, state: TrainState) -> str:
    sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), state.params)
    count = sum(jax.tree.leaves(sizes))
    chosen = jax.tree.map(operator.mul, sizes, trained(sizes, config.train.trainable))
    part = "" if config.train.trainable is None else f", {sum(jax.tree.leaves(chosen)):,} trained"
    begun = f"resumed at step {int(state.step)}" if int(state.step) else "begun"
    return (
        f"{begun}: {count:,} parameters{part}, {config.data.name}, batches of "
        f"{config.data.batch_size} crops of {config.data.crop}, {mesh.size} x "
        f"{jax.devices()[0].device_kind} in {jax.process_count()} process(es)"
    )


def _say(console: Console, folder: str, where: str, text: str) -> None:
    """Shows a line in the first process; what lies in the folder, lies where the user said."""
    if primary():
        console.print(text.replace(folder, where))


def _due(step: int, every: int) -> bool:
    return step % every == 0


def _reading(say: Callable[[str], None]) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        stop_if_asked()
        if done in (1, total) or done % 100 == 0:
            say(f"{what}: {done} of {total}")

    return progress
