"""The model over all devices of this machine: restorations and likelihoods of batches."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from zmar_jax import ops
from zmar_jax.flow import invert_weights
from zmar_jax.imaging.exposure import Seen, as_seen
from zmar_jax.imaging.images import pad_to_multiple
from zmar_jax.imaging.views import View
from zmar_jax.models import ZmarSNFlow, losses
from zmar_jax.restore import memory
from zmar_jax.restore.latents import Tally, latent
from zmar_jax.runtime import compilation, sharding
from zmar_jax.runtime.memory import MemoryLimitError
from zmar_jax.runtime.stop import stop_if_asked
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import Weights

Array = jax.Array
Pictures = Sequence[np.ndarray]
"""uint8 [H, W, 3] each, at least 16x16, of one padded size."""

MEGAPIXEL = 1 << 20


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which restorations of a picture are averaged: as `Restorer.sample`, with the views chosen."""

    heat: float = 0.0
    samples: int = 1
    views: tuple[View, ...] = (View(),)
    seed: int = 0


class Network:
    """Programs for batches that are split over `devices`; each padded size is compiled once.

    `seconds` counts what they ran, without compiling.
    """

    def __init__(
        self,
        weights: Weights,
        per_device: int | None = None,
        devices: Sequence[Any] | None = None,
        memory_limit: int | None = None,
        likelihood: bool = True,
    ):
        """`per_device` pictures are computed at once on each device; None is about a megapixel of
        them if they fit, or one on a CPU.

        Args:
          memory_limit: bytes that each device may take; None: what there is, less a reserve.
          likelihood: whether `bits_per_dim` will be asked for.
        """
        mesh = sharding.make_mesh(devices=devices or jax.local_devices())
        model = ZmarSNFlow(weights.config, compilation.stripe_bytes())
        self.config = weights.config
        self._memory, self._likelihood = memory_limit, likelihood
        self.seconds: float = 0.0
        self._mesh, self._per_device = mesh, per_device
        try:
            variables = {"params": weights.params, "inverse": invert_weights(weights.params)}
        except np.linalg.LinAlgError as e:
            raise WeightsError(f"an invconv.weight is singular ({e}); use other weights") from e
        self._variables = jax.device_put(variables, NamedSharding(mesh, sharding.REPLICATED))
        self._compiled: dict[Any, Any] = {}
        quantization, self._brightness = weights.config.quantization, weights.config.brightness

        def encode(variables: Any, low: Array) -> Any:
            low = sharding.constrain(low, sharding.BATCH)
            features = model.apply(variables, *ops.network_input(low), method="features")
            return sharding.constrain(features, sharding.BATCH)

        def decode(variables: Any, z: Array, features: Any) -> Array:
            z = jnp.broadcast_to(z, (jax.tree.leaves(features)[0].shape[0], *z.shape[1:]))
            x, _ = model.apply(variables, z, features, method="decode")
            return sharding.constrain(ops.to_pixels(x), sharding.BATCH)

        def bits(variables: Any, gt: Array, seeds: Array, features: Any) -> Array:
            def noise(seed: Array) -> Array:
                return jax.random.uniform(jax.random.key(seed), gt.shape[1:]) - 0.5

            args = (ops.to_unit(gt), features, jax.vmap(noise)(seeds))
            nll = model.apply(variables, *args, method="conditional_nll")
            return losses.bits_per_dim(nll, quantization)

        self._encode, self._decode, self._bits = (
            sharding.jit(program, mesh) for program in (encode, decode, bits)
        )

    def rows(self, height: int, width: int) -> int:
        """Pictures of a batch, given their padded size."""
        per_device = self._per_device
        if per_device is None:
            on_cpu = jax.default_backend() == "cpu"
            per_device = 1 if on_cpu else max(MEGAPIXEL // (height * width), 1)
            limit = memory.limit_of(self._memory, self._mesh.size)
            while per_device > 1 and self._need(height, width, per_device) > limit:
                per_device //= 2
        return per_device * self._mesh.size

    def check(self, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
        """Raises MemoryLimitError where pictures of these (height, width) do not fit, before any
        is computed; it names the largest."""
        if not sizes:
            return
        limit = memory.limit_of(self._memory, self._mesh.size)
        taken = {
            size: self._need(*size, self.rows(*size) // self._mesh.size)
            for size in {self.config.padded(*size) for size in sizes}
        }
        needs = [taken[self.config.padded(*size)] for size in sizes]
        largest = max(range(len(sizes)), key=needs.__getitem__)
        if needs[largest] > limit:
            several = self._per_device or 1
            raise MemoryLimitError(
                f"{names[largest]}: {memory.needs(*sizes[largest], needs[largest], limit)}; make "
                f"it smaller or leave it out, or say more --memory"
                f"{' or less --batch' if several > 1 else ''}"
            )

    def _need(self, height: int, width: int, batch: int) -> int:
        return memory.need(
            self.config,
            height,
            width,
            compilation.stripe_bytes(),
            batch=batch,
            likelihood=self._likelihood,
        )

    def see(self, lows: Pictures) -> list[Seen]:
        """The pictures as the model is to see them."""
        return [as_seen(low, self._brightness) for low in lows]

    def encode(self, seen: Sequence[Seen]) -> Any:
        """What the flow decodes with, of a whole batch (`ZmarSNFlow.features`)."""
        return self._encode_seen([picture.image for picture in seen])

    def restore(
        self, seen: Sequence[Seen], sampling: Sampling, features: Any
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation over the restorations of each picture.

        Args:
          features: what `encode` returned for the same pictures.

        Returns:
          float64 [H, W, 3] both, of 1 = white; NaN where a restoration is not finite.
        """
        padded = self.config.padded(*seen[0].image.shape[:2])
        tallies = [Tally(low.image.shape) for low in seen]
        for view in sampling.views:
            if view != View():
                # as exposed before: a turned picture has other blocks, and they would be measured
                features = self._encode_seen([view.of(low.image) for low in seen])
            size = padded[::-1] if view.turns % 2 else padded
            for i in range(sampling.samples):
                z = latent(sampling.heat, sampling.seed, i, self.config.latent_shape(*size))
                x = np.asarray(self._run(self._decode, self._variables, z, features))
                for low, tally, picture in zip(seen, tallies, x, strict=False):
                    height, width, _ = view.of(low.image).shape
                    tally.add(low.keep(view.back(picture[:height, :width])))
        return [(tally.mean, tally.std) for tally in tallies]

    def bits_per_dim(self, gts: Pictures, seeds: Sequence[int], features: Any) -> list[float]:
        """Negative log-likelihood of each picture, bits per dimension (`losses.bits_per_dim`).

        Of the pictures as they are padded to multiples of the stride.

        Args:
          seeds: of each picture's dequantisation noise, below 2**32.
          features: what `encode` returned for their low pictures.
        """
        batch = self._batch(gts)
        filled = self._split(_filled(np.asarray(seeds, np.uint32), len(batch)))
        bits = self._run(self._bits, self._variables, batch, filled, features)
        return np.asarray(bits)[: len(gts)].tolist()

    def _encode_seen(self, exposed: Pictures) -> Any:
        return self._run(self._encode, self._variables, self._batch(exposed))

    def _batch(self, pictures: Pictures) -> Array:
        padded = np.stack([pad_to_multiple(picture, self.config.stride) for picture in pictures])
        return self._split(_filled(padded, self.rows(*padded.shape[1:3])))

    def _split(self, array: np.ndarray) -> Array:
        return sharding.shard_batch({"": array}, self._mesh)[""]

    def _run(self, program: sharding.Program, *args: Any) -> Any:
        key = (id(program), *(leaf.shape for leaf in jax.tree.leaves(args[1:])))
        if key not in self._compiled:
            self._compiled[key] = program.compile(*args)
        stop_if_asked()
        start = time.perf_counter()
        result = jax.block_until_ready(self._compiled[key](*args))
        self.seconds += time.perf_counter() - start
        return result


def batches(
    sizes: Sequence[tuple[int, int]],
    rows: Callable[[int, int], int],
    padded: Callable[[int, int], tuple[int, int]],
) -> list[list[int]]:
    """Indices of pictures, in batches of one padded size; what is in a batch depends on all sizes
    alone, so that it stays the same when a run goes on.

    Args:
      rows: of a batch, given the padded height and width; padded: the padded size of a size.
    """
    buckets: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(sizes):
        buckets.setdefault(padded(height, width), []).append(i)
    found = []
    for size, indices in buckets.items():
        step = rows(*size)
        found += [indices[start : start + step] for start in range(0, len(indices), step)]
    return found


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The last row repeated up to `rows`."""
    return array[np.minimum(np.arange(rows), len(array) - 1)]
