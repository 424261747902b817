"""Validation during training: whole pictures restored at heat 0 and scored (model.md section 8)."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zmar_jax import ops
from zmar_jax.config import Config
from zmar_jax.data import DataError
from zmar_jax.data.folders import Tell
from zmar_jax.data.pipeline import EvalBatches, Loader, make_loader
from zmar_jax.data.sources import Progress, Subset, silent
from zmar_jax.imaging.exposure import as_seen
from zmar_jax.imaging.images import pad_to_multiple, size_text
from zmar_jax.imaging.metrics import score
from zmar_jax.models import ZmarSNFlow
from zmar_jax.runtime import compilation, sharding
from zmar_jax.runtime.memory import check_program
from zmar_jax.runtime.processes import together

Panel = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Name, low, restored and gt of a picture, uint8 [H, W, 3]."""
PANELS = 4


class Validator:
    """Restores the validation split, one picture per device at a time."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        tell: Tell = warnings.warn,
        progress: Progress = silent,
    ):
        """`tell` and `progress` are called as by `make_loader`."""
        model = ZmarSNFlow(config.model, compilation.stripe_bytes())
        processes = jax.process_count()
        data = dataclasses.replace(config.data, batch_size=mesh.size, workers=0)
        loader = make_loader(data, "val", jax.process_index(), processes, progress, tell=tell)
        self.loader = _bounded(loader, config.train.validate_pictures, mesh.size // processes)
        self._mesh, self._brightness = mesh, config.model.brightness
        self._stride = config.model.stride

        def restore(params: Any, low: jax.Array) -> jax.Array:
            lr, mask = ops.network_input(sharding.constrain(low, sharding.BATCH))
            b, h, w, _ = low.shape
            z = jnp.zeros((b, *config.model.latent_shape(h, w)))
            x, _ = model.apply({"params": params}, z, lr, mask, method="inverse")
            return sharding.constrain(ops.to_pixels(x), sharding.BATCH)

        self._restore = sharding.jit(restore, mesh)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, params: Any) -> tuple[dict[str, float], list[Panel]]:
        """Scores as the release validates, and the first pictures of this process.

        Returns:
          psnr (dB) and ssim, means over the split (NaN where a pixel is not finite), and
          psnr_input, of the dark pictures themselves; up to `PANELS` panels.

        Raises:
          MemoryLimitError: a picture does not fit into memory beside what training holds.
        """
        rows, panels = [], []
        self.loader.restart()
        for batch in self.loader:
            restored = self._local(params, batch["low"])
            for i in np.flatnonzero(batch["valid"]):
                low, gt = batch["low"][i], batch["gt"][i]
                found, given = (score(image, gt, "validation") for image in (restored[i], low))
                rows.append((found.psnr, found.ssim, given.psnr))
                if len(panels) < PANELS:
                    shown = np.round(255 * np.nan_to_num(restored[i])).astype(np.uint8)
                    panels.append((str(batch["id"][i]), low, shown, gt))
        sums = np.append(np.sum(np.reshape(rows, (-1, 3)), 0), len(rows))
        totals = np.reshape(multihost_utils.process_allgather(sums), (-1, 4)).sum(0)
        names = ("psnr", "ssim", "psnr_input")
        return dict(zip(names, (totals[:3] / totals[3]).tolist(), strict=True)), panels

    def get_state(self) -> dict[str, str]:
        """What scores are of, to be saved beside the state of the training data."""
        return {"validation": self.loader.pictures}

    def check_state(self, state: dict[str, Any], accept_changes: bool = False) -> None:
        """Raises DataError where scores saved with `state` are of other pictures than these.

        Args:
          state: what `get_state` said; of older versions it says nothing.
          accept_changes: go on although they are.
        """
        before = state.get("validation", self.loader.pictures)
        if before != self.loader.pictures and not accept_changes:
            raise DataError(
                "the validation pictures are not those that this run was begun with, so its scores "
                "would not compare; put them back, begin another run, or say --accept-changes"
            )

    def _local(self, params: Any, low: np.ndarray) -> np.ndarray:
        """This process's pictures restored, float32 in [0, 1] or NaN."""
        _, height, width, _ = low.shape
        seen = np.stack([as_seen(picture, self._brightness).image for picture in low])
        padded = pad_to_multiple(seen, self._stride)
        batch = sharding.shard_batch({"low": padded}, self._mesh)["low"]
        out = self._program(params, batch)(params, batch)
        shards = sorted(out.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        restored = np.concatenate([np.asarray(shard.data) for shard in shards])
        return restored[:, :height, :width]

    def _program(self, params: Any, batch: jax.Array) -> Any:
        """What restores such a batch; MemoryLimitError where that does not fit."""
        if batch.shape not in self._compiled:
            program = self._restore.compile(params, batch)
            _, height, width, _ = batch.shape
            what = f"validation, of pictures of {size_text((height, width))} pixels,"
            advice = "validate on smaller ones, or train where there is more"
            locally = len(self._mesh.local_devices)
            together(lambda: check_program(program, what, advice, locally))
            self._compiled[batch.shape] = program
        return self._compiled[batch.shape]


def _bounded(loader: Loader, most: int | None, rows: int) -> Loader:
    """A loader of at most so many pictures, evenly spread over all.

    Args:
      rows: of a batch, of this process.
    """
    examples = loader.batches.examples
    count = len(examples.source)
    if most is None or most >= count:
        return loader
    some = Subset(examples.source, [i * count // most for i in range(most)])
    start = jax.process_index() * rows
    batches = EvalBatches(dataclasses.replace(examples, source=some), slice(start, start + rows))
    return Loader(batches, workers=0)
