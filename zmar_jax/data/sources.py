"""What batches are made of: examples by index, decoded already or at each reading."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

Split = Literal["train", "val"]
Size = tuple[int, int]
"""Height and width, pixels."""


class Progress(Protocol):
    """Called with what is done, how much of it, and how much there is; may raise, to end it."""

    def __call__(self, what: str, done: int, total: int, /) -> object: ...


def silent(what: str, done: int, total: int, /) -> None:
    """No progress."""


class Source(Protocol):
    """Examples by index, of which crops are cut: a clean photograph, or a dark one and its truth.

    ids: of each example; sizes: of each.
    roles: ("gt",), or ("low", "gt").
    key: changes with what `read` gives, and is the same wherever it lies.
    """

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def sizes(self) -> Sequence[Size] | np.ndarray: ...
    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def key(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, i: int, /) -> tuple[np.ndarray, ...]:
        """uint8 [H, W, 3] of one size, read-only, for each of the roles."""
        ...


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A `Source` that decodes at each reading; `sizes` is None where files would have to be read.

    `fingerprint` changes with what `read(i)` gives.
    """

    name: str
    ids: Sequence[str]
    fingerprint: str
    read: Callable[[int], tuple[np.ndarray, ...]]
    roles: tuple[str, ...] = ("gt",)
    sizes: Sequence[Size] | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> str:
        return f"{self.name}-{self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some examples of a `Source`, as if there were no others; each as it is among all."""

    source: Source
    chosen: Sequence[int]

    @functools.cached_property
    def ids(self) -> list[str]:
        """Read once: a shard's names lie beside its pictures."""
        return [self.source.ids[i] for i in self.chosen]

    @functools.cached_property
    def sizes(self) -> list[Size]:
        return [self.source.sizes[i] for i in self.chosen]

    @property
    def roles(self) -> tuple[str, ...]:
        return self.source.roles

    @property
    def key(self) -> str:
        return self.source.key

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, i: int) -> tuple[np.ndarray, ...]:
        return self.source.read(self.chosen[i])
