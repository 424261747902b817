"""Views of a picture, mirrored and turned; restorations of several are averaged. Not in the paper.

What a model makes of noise and of lost pixels differs from view to view, and a mean has less of it.
"""

from typing import Literal, NamedTuple

import numpy as np

Views = Literal["auto", 1, 2, 4, 8]
"""How many views: 2 adds the mirrored picture, 4 all that keep its size, 8 its quarter turns."""


class View(NamedTuple):
    """So many quarter turns, and then whether mirrored left to right."""

    turns: int = 0
    mirrored: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """The picture [H, W, C], or [W, H, C] after an odd number of turns."""
        image = np.rot90(image, self.turns)
        return image[:, ::-1] if self.mirrored else image

    def back(self, image: np.ndarray) -> np.ndarray:
        """The picture of which `image` is this view."""
        return np.rot90(image[:, ::-1] if self.mirrored else image, -self.turns)


_ALL = tuple(View(turns, bool(m)) for turns, m in ((0, 0), (0, 1), (2, 0), (2, 1))) + tuple(
    View(turns, mirrored) for mirrored in (False, True) for turns in (1, 3)
)


def choose_views(views: Views, brightness: float, heat: float) -> tuple[View, ...]:
    """The views of which a picture's restorations are averaged; the first is the picture itself.

    `auto` is four for models with a brightness (`ModelConfig.brightness`), which are ours, and one
    for published weights, whose numbers stay. Above heat 0 it is one: samples are averaged anyhow.

    Raises:
      ValueError: another number.
    """
    if views not in ("auto", 1, 2, 4, 8):
        raise ValueError(f"views must be auto, 1, 2, 4 or 8, got {views!r}")
    if views == "auto":
        views = 4 if brightness and not heat else 1
    return _ALL[:views]
