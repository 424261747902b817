"""The checkpoints of a training run: saved in the background, whole, checked, the best kept."""

import contextlib
import errno
import functools
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
import yaml

from zmar_jax.config import Config, from_dict, to_dict
from zmar_jax.files.errors import brief, errors_as
from zmar_jax.files.replacing import write_whole
from zmar_jax.runtime.processes import from_primary, primary, together
from zmar_jax.train import changes
from zmar_jax.train.bucket import RunBucket
from zmar_jax.train.changes import CONFIG
from zmar_jax.weights import folder
from zmar_jax.weights.checkpoint import CheckpointError
from zmar_jax.weights.run import misfits

State = TypeVar("State")


class RunCheckpoints:
    """Saves and restores the run in `workdir`; all its processes make the same calls.

    The last `config.train.keep` checkpoints are kept, and the best by validation PSNR. Each is
    written under a temporary name and renamed when whole, so that none is ever half there.

    The run's configuration is that of its newest checkpoint. `config.yaml` says the same, for
    people: it is written with a checkpoint, so that a run that was given another configuration and
    did nothing with it keeps its own.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: Config,
        warn: Callable[[str], None],
        accept_changes: bool = False,
        bucket: RunBucket | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        """Goes on with a run, or begins one.

        Args:
          workdir: a folder that all processes see; or, of a run in a `bucket`, one that only this
            process sees: it then asks no other process for anything (`BucketCheckpoints`).
          warn: is told in one line of what is damaged and what is used instead.
          accept_changes: go on with another configuration than the run was begun with.
          about: what every checkpoint tells of the run beside its configuration (`about.about`).

        Raises:
          CheckpointError: the run was begun with another configuration (the message lists what
            differs beyond `changes.HARMLESS`), all its checkpoints are damaged, or it cannot be
            written.
        """
        self.workdir: Path = Path(workdir).absolute()
        self.folder: Path = self.workdir / "checkpoints"
        self._config, self._bucket, self._about = config, bucket, dict(about or {})
        self._alone = bucket is not None or jax.process_count() == 1
        self._ask = _call if bucket else from_primary
        self._warn = warn if primary() else lambda _: None
        self._saving: int | None = None
        self._put: int | None = None
        self._bytes = 0
        # Orbax logs whole tracebacks of the errors that are raised here as one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._accept_changes = accept_changes
        if problem := self._ask(self._refused):
            raise CheckpointError(problem)
        with self._writing(self.folder):
            self._ask(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        found = self._ask(lambda: folder.steps(self.folder))
        damaged = {step: p for step in found if (p := self._damage(step, folder.metrics_damage))}
        if damaged and len(damaged) == len(found):
            raise self._all_damaged(damaged)
        self._set_aside(damaged)
        self._manager = self._open()

    @property
    def latest_good(self) -> Path | None:
        """The newest finished checkpoint, to be named in messages."""
        found = folder.steps(self.folder)
        return self.folder / str(found[-1]) if found else None

    def save(
        self, step: int, state: Any, data_state: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Begins to save; `state` may be changed or donated afterwards.

        A step that is saved already is left as it is. Where the last save failed there is a
        warning, and this one is waited for (with several processes that is an error).

        Args:
          state: pytree of arrays, sharded or not.
          data_state: anything that JSON can hold, the same in all processes.
          metrics: of the validation at this step, "psnr" among them.

        Raises:
          CheckpointError: it cannot be written; the older ones are untouched.
        """
        failed = False
        try:
            self.wait()
        except CheckpointError as e:
            if not self._alone:
                raise
            failed = True
            self._warn(str(e))
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"state": data_state}),
            config=ocp.args.JsonSave(to_dict(self._config)),
            run=ocp.args.JsonSave(self._about),
        )
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        known = math.isfinite(scores.get(folder.BEST, math.nan))
        self._saving = step
        with self._writing(self.folder / str(step)):
            self._check_room(state)
            self._manager.save(step, args=items, metrics=scores if known else None, force=True)
        if failed:
            self.wait()

    def wait(self) -> None:
        """Returns when what was saved is on the disk.

        Raises:
          CheckpointError: as for `save`.
        """
        with self._writing(self.folder / str(self._saving)):
            self._manager.wait_until_finished()
            if self._bucket and primary() and self._put is not None:
                self._bucket.keep_only(folder.steps(self.folder))
                self._put = None

    def restore_latest(self, abstract_state: State) -> tuple[int, State, Any] | None:
        """The newest checkpoint, as (step, state, data_state); None where there is none.

        A damaged one is warned of and moved to WORKDIR/damaged, and the one before is taken.

        Args:
          abstract_state: `jax.ShapeDtypeStruct`s with shardings, or arrays, like those saved.

        Raises:
          CheckpointError: all are damaged, or what is saved does not fit this run.
        """
        self.wait()
        step, damaged = self._choose(sorted(self._manager.all_steps(), reverse=True))
        if step is None:
            return None
        restored = self._read(step, abstract_state)
        self._set_aside(damaged, f"; going on from step {step}")
        self._manager.reload()
        return restored

    def close(self) -> None:
        """Waits for what is being saved, and ends the threads.

        Raises:
          CheckpointError: as for `save`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> ocp.CheckpointManager:
        def psnr(metrics: Any) -> float:
            return metrics[folder.BEST]

        policies = ocp.checkpoint_managers
        newest = policies.LatestN(self._config.train.keep)
        best = policies.BestN(get_metric_fn=psnr, n=1, keep_checkpoints_without_metrics=False)
        # called when all files are there, before Orbax renames their folder
        finished = ocp.AsyncOptions(post_finalization_callback=self._finish)
        options = ocp.CheckpointManagerOptions(
            best_fn=psnr,
            preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            create=False,  # which `__init__` has done
            cleanup_tmp_directories=True,
            async_options=finished,
            multiprocessing_options=_only_this_process() if self._bucket else _all_processes(),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _finish(self) -> None:
        """Writes what completes a checkpoint: its digests, and the configuration that made it."""
        folder.write_digests(self._temporary())
        if self._bucket and self._saving is not None:
            self._bucket.put_checkpoint(self._temporary(), self._saving)
            self._put = self._saving
        if not changes.holds(known := self.workdir / CONFIG, self._config):
            write_whole(known, yaml.safe_dump(to_dict(self._config), sort_keys=False))

    def _check_room(self, state: Any) -> None:
        """Raises where the disk has no room; TensorStore's threads would complain later."""
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = self._ask(lambda: shutil.disk_usage(self.folder).free)
        if free < self._bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _temporary(self) -> Path:
        return self.folder / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Whatever goes wrong becomes a CheckpointError, and what is half-written goes."""
        try:
            yield
        except Exception as e:  # Orbax and TensorStore raise errors of many types
            if self._saving is not None:
                self._clean_up()
            good = f"{self.latest_good} is untouched; " if self.latest_good else ""
            problem, remedy = brief(e), "mend that"
            if "No space left" in str(e):
                problem, remedy = "the disk is full", "free space"
                if self._bytes:
                    remedy = f"free {self._bytes / 1e6:.3g} MB"
            raise CheckpointError(
                f"{path}: cannot be written: {problem}; {good}"
                f"{remedy} and start again with the same --workdir"
            ) from e

    def _clean_up(self) -> None:
        """After a save that failed."""
        if self._alone:
            with contextlib.suppress(Exception):  # of the threads that failed with the first
                self._manager.close()
        if primary():
            shutil.rmtree(self._temporary(), ignore_errors=True)
        if self._alone:
            self._manager = self._open()

    def _refused(self) -> str:
        """What speaks against going on with this configuration, as the files tell; "" if nothing.

        A run that has saved nothing has nothing that another configuration could spoil.
        """
        for step in reversed(folder.steps(self.folder)):
            path = self.folder / str(step)
            if not folder.damage(path, "config"):
                return self._other_config(path)
        return ""

    def _other_config(self, path: Path) -> str:
        """What speaks against going on from a checkpoint with this configuration."""
        if self._accept_changes:
            return ""
        return changes.refusal(self.workdir, path, folder.saved_config(path), self._config)

    def _choose(self, steps: Iterable[int]) -> tuple[int | None, dict[int, str]]:
        """The first of `steps` that is whole, and what is wrong with those before it."""
        damaged: dict[int, str] = {}
        for step in steps:
            problem = self._damage(step)
            if not problem:
                return step, damaged
            damaged[step] = problem
        if damaged:
            raise self._all_damaged(damaged)
        return None, damaged

    def _damage(self, step: int, check: Callable[[Path], str | None] = folder.damage) -> str:
        """What is wrong with a checkpoint, as the primary process finds it; "" if nothing is."""
        if self._bucket and check is folder.damage:
            self._bucket.complete(step)
        return self._ask(lambda: check(self.folder / str(step)) or "")

    def _all_damaged(self, damaged: Mapping[int, str]) -> CheckpointError:
        problems = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
        return CheckpointError(
            f"{self.folder}: every checkpoint is damaged ({problems}); "
            "put a copy of one back, or start anew with another --workdir"
        )

    def _set_aside(self, damaged: Mapping[int, str], instead: str = "") -> None:
        for step, problem in damaged.items():
            source = self.folder / str(step)
            goal = folder.free_name(self.workdir / "damaged" / str(step))
            self._warn(f"{source}: damaged ({problem}), moved to {goal}{instead}")
            with self._writing(goal):
                if self._bucket:
                    self._bucket.complete(step)
                self._ask(functools.partial(_move, source, goal))
        if damaged and self._bucket and primary():
            self._bucket.put_log(self._warn, now=True)
            self._bucket.keep_only(folder.steps(self.folder))

    def _read(self, step: int, abstract_state: State) -> tuple[int, State, Any]:
        path = self.folder / str(step)
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract_state)
        check = functools.partial(self._check_fit, path, wanted)
        check() if self._bucket else together(check)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore()
        )
        with errors_as(CheckpointError, lambda e: f"{path}: cannot be read: {brief(e)}"):
            read = self._manager.restore(step, args=args)
        return step, read["state"], read["data"]["state"]

    def _check_fit(self, path: Path, wanted: Any) -> None:
        """Raises CheckpointError unless this run may go on from the checkpoint."""
        if problem := self._other_config(path):
            raise CheckpointError(problem)
        with errors_as(CheckpointError, lambda e: f"{path}: cannot be read: {brief(e)}"):
            others = misfits(path, wanted)
        if others:
            before = from_dict(Config, folder.saved_config(path), f"{path}/config")
            if changed := ", ".join(changes.changes(before, self._config)):
                raise CheckpointError(
                    f"{path}: cannot go on with {changed}, as it has other arrays: {others}; "
                    "choose another --workdir, and name this run in train.init to begin from its "
                    "weights"
                )
            raise CheckpointError(
                f"{path}: is whole, but does not fit this version of zmar_jax: other arrays: "
                f"{others}"
            )


def _call(ask: Callable[[], Any]) -> Any:
    return ask()


def _all_processes() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions()


def _only_this_process() -> ocp.options.MultiprocessingOptions:
    """Each process has a manager of its own folder, which waits for none of the others."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )


def _move(source: Path, goal: Path) -> None:
    goal.parent.mkdir(exist_ok=True)
    source.rename(goal)
