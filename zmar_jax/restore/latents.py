"""Samples of the flow: the latent of each, and what several restorations have in common."""

import jax
import numpy as np


def latent(heat: float, seed: int, sample: int, shape: tuple[int, int, int]) -> jax.Array:
    """Float32 [1, *shape], normal with standard deviation `heat` (model.md section 6).

    Args:
      sample: which of the samples that `seed` gives; the same whatever else is drawn.
      shape: `ModelConfig.latent_shape`.
    """
    rng = jax.random.fold_in(jax.random.key(seed), sample)
    return heat * jax.random.normal(rng, (1, *shape))


class Tally:
    """Mean and standard deviation of arrays that come one by one; NaN where one is not finite.

    Float64, by Welford's update: no cancellation, however many there are.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.count, self.mean, self._squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, x: np.ndarray) -> None:
        self.count += 1
        # infinite is as broken as NaN
        delta = np.where(np.isfinite(x), x, np.nan) - self.mean
        self.mean = self.mean + delta / self.count
        self._squares = self._squares + delta * (x - self.mean)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / self.count)
