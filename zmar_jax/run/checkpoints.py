"""The checkpoints of a training run: saved in the background, whole, checked, the best kept."""

import contextlib
import errno
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
import yaml

from zmar_jax.checkpoint import CheckpointError, brief
from zmar_jax.config import Config, from_dict, load_config, to_dict
from zmar_jax.run import folder
from zmar_jax.run.processes import barrier, from_primary, primary
from zmar_jax.run.weights import misfits

State = TypeVar("State")

HARMLESS = (
    "data.data_dir",
    "data.workers",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "train.max_bad_steps",
    "train.validate_every",
)
"""Keys that a run may change when it goes on: they decide what is seen and kept and where data
lies, never what is computed. `train.steps` is none of them: the schedule depends on it."""


class RunCheckpoints:
    """Saves and restores the run in `workdir`; all its processes make the same calls.

    The last `config.train.keep` checkpoints are kept, and the best by validation PSNR. Each is
    written under a temporary name and renamed when whole, so that none is ever half there.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: Config,
        warn: Callable[[str], None],
        accept_changes: bool = False,
    ):
        """Goes on with a run, or begins one.

        Args:
          warn: is told in one line of what is damaged and what is used instead.
          accept_changes: go on with another configuration than the run was begun with.

        Raises:
          CheckpointError: the run was begun with another configuration (the message lists what
            differs beyond `HARMLESS`), all its checkpoints are damaged, or it cannot be written.
          ConfigError: the run's `config.yaml` cannot be read.
        """
        self.workdir = Path(workdir).absolute()
        self.folder = self.workdir / "checkpoints"
        self._config = config
        self._warn = warn if primary() else lambda _: None
        self._saving: int | None = None
        self._bytes = 0
        # Orbax logs whole tracebacks of the errors that are raised here as one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._accept_changes = accept_changes
        known = self.workdir / "config.yaml"
        # a run that has saved nothing has nothing that another configuration could spoil
        if known.exists() and folder.steps(self.folder):
            self._check_config(load_config(known))
        barrier("config")
        with self._writing(known):
            if primary():
                self.folder.mkdir(parents=True, exist_ok=True)
                folder.write_whole(known, yaml.safe_dump(to_dict(config), sort_keys=False))
        barrier("folder")
        found = folder.steps(self.folder)
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
            if jax.process_count() > 1:
                raise
            failed = True
            self._warn(str(e))
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"state": data_state}),
            config=ocp.args.JsonSave(to_dict(self._config)),
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
          CheckpointError: as of `save`.
        """
        with self._writing(self.folder / str(self._saving)):
            self._manager.wait_until_finished()

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
          CheckpointError: as of `save`.
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
        finished = ocp.AsyncOptions(
            post_finalization_callback=lambda: folder.write_digests(self._temporary())
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=psnr,
            preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            cleanup_tmp_directories=True,
            async_options=finished,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _check_room(self, state: Any) -> None:
        """Better than to find out: the threads of TensorStore complain after an error."""
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = from_primary(lambda: str(shutil.disk_usage(self.folder).free))
        if int(free) < self._bytes:
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
        alone = jax.process_count() == 1
        if alone:
            with contextlib.suppress(Exception):  # of the threads that failed with the first
                self._manager.close()
        if primary():
            shutil.rmtree(self._temporary(), ignore_errors=True)
        if alone:
            self._manager = self._open()

    def _check_config(self, before: Config) -> None:
        old, new = _flat(to_dict(before)), _flat(to_dict(self._config))
        changes = [
            f"{key} {_shown(old[key])} -> {_shown(value)}"
            for key, value in new.items()
            if old[key] != value and key not in HARMLESS
        ]
        if changes and not self._accept_changes:
            raise CheckpointError(
                f"{self.workdir}: this run was begun with another configuration: "
                f"{', '.join(changes)}; choose another --workdir, go on with "
                f"--config {self.workdir / 'config.yaml'}, or say --accept-changes"
            )

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

    def _damage(self, step: int, check: Callable[[Path], str] = folder.damage) -> str:
        return from_primary(lambda: check(self.folder / str(step)))

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
                if primary():
                    goal.parent.mkdir(exist_ok=True)
                    source.rename(goal)
        barrier("damaged")

    def _read(self, step: int, abstract_state: State) -> tuple[int, State, Any]:
        path = self.folder / str(step)
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract_state)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted),
            data=ocp.args.JsonRestore(),
            config=ocp.args.JsonRestore(),
        )
        try:
            if others := misfits(path, wanted):
                raise ValueError(f"other arrays: {others}")
            read = self._manager.restore(step, args=args)
        except Exception as e:
            raise CheckpointError(
                f"{path}: is whole, but does not fit this version of zmar_jax: {brief(e)}"
            ) from e
        self._check_config(from_dict(Config, read["config"], f"{path}/config"))
        return step, read["state"], read["data"]["state"]


def _flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Dotted keys, as of the command line."""
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]
