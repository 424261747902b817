"""How parameters begin: each initialiser stands with its parameter and says which numbers it draws.

`module.init` draws leaf by leaf, and compiling its 200 generators takes 40 s. `draw` draws the
same distributions with one generator for all uniform and one for all normal numbers. It asks the
parameters themselves: while `recorded` traces a module, the initialisers leave their mark on the
parameters that they make.
"""

import contextvars
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

Array = jax.Array
Shape = tuple[int, ...]
Path = tuple[str, ...]

_recording = contextvars.ContextVar("recording", default=False)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """init(key, shape) -> float array, for `self.param(name, init, shape)`.

    To add one, subclass this and write `one`.
    """

    def one(self, key: Array, shape: Shape) -> Array:
        """The parameter of one layer."""
        raise NotImplementedError

    def __call__(self, key: Array, shape: Shape) -> Any:
        value = self.one(key, shape)
        return Recorded(value, self) if _recording.get() else value

    @classmethod
    def all(cls, leaves: "dict[Path, Recorded]", key: Array) -> dict[Path, Array]:
        """All parameters of this class: one by one, and layer by layer."""
        keys = jax.random.split(key, len(leaves))
        return {path: leaf.one(k) for k, (path, leaf) in zip(keys, leaves.items(), strict=True)}


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """All numbers are `value`."""

    value: float

    def one(self, key: Array, shape: Shape) -> Array:
        return jnp.full(shape, self.value)

    @classmethod
    def all(cls, leaves: "dict[Path, Recorded]", key: Array) -> dict[Path, Array]:
        return {p: leaf.initializer.one(key, leaf.value.shape) for p, leaf in leaves.items()}


zeros: Constant = Constant(0.0)
ones: Constant = Constant(1.0)


@dataclasses.dataclass(frozen=True)
class Scaled(Initializer):
    """Independent numbers of one distribution, times a number for each parameter."""

    def scale(self, shape: Shape) -> float:
        """By the shape of one layer's parameter."""
        raise NotImplementedError

    @staticmethod
    def numbers(key: Array, shape: Shape) -> Array:
        """Draws from the distribution."""
        raise NotImplementedError

    def one(self, key: Array, shape: Shape) -> Array:
        return self.scale(shape) * self.numbers(key, shape)

    @classmethod
    def all(cls, leaves: "dict[Path, Recorded]", key: Array) -> dict[Path, Array]:
        """By one draw, cut into pieces."""
        sizes = [math.prod(leaf.value.shape) for leaf in leaves.values()]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        pieces = jnp.split(cls.numbers(key, (sum(sizes),)), ends)
        return {
            path: leaf.initializer.scale(leaf.layer_shape) * piece.reshape(leaf.value.shape)
            for piece, (path, leaf) in zip(pieces, leaves.items(), strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Normal(Scaled):
    """Normal with standard deviation `std`."""

    std: float = 0.05

    def scale(self, shape: Shape) -> float:
        return self.std

    @staticmethod
    def numbers(key: Array, shape: Shape) -> Array:
        return jax.random.normal(key, shape)


@dataclasses.dataclass(frozen=True)
class FanIn(Scaled):
    """Uniform within 1 / sqrt(inputs of one output): PyTorch's default for a convolution."""

    def scale(self, shape: Shape) -> float:
        return 1 / math.sqrt(math.prod(shape[:-1]))

    @staticmethod
    def numbers(key: Array, shape: Shape) -> Array:
        return 2 * jax.random.uniform(key, shape) - 1


@dataclasses.dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random orthogonal matrix."""

    def one(self, key: Array, shape: Shape) -> Array:
        return jax.nn.initializers.orthogonal()(key, shape)


class Recorded(flax.struct.PyTreeNode, meta.AxisMetadata):
    """A parameter and its initialiser; Flax takes it out where a module reads it."""

    value: Any
    initializer: Any = flax.struct.field(pytree_node=False)
    layers: int = flax.struct.field(pytree_node=False, default=0)
    """How many leading axes count layers: 1 in a scan, else 0."""

    @property
    def layer_shape(self) -> Shape:
        return self.value.shape[self.layers :]

    def one(self, key: Array) -> Array:
        """The whole parameter, drawn layer by layer."""
        draw = functools.partial(self.initializer.one, shape=self.layer_shape)
        for length in reversed(self.value.shape[: self.layers]):
            draw = functools.partial(_each, draw, length)
        return draw(key)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        return self.replace(layers=self.layers + 1)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        return self.replace(layers=self.layers - 1)


def _each(draw: Callable[[Array], Array], length: int, key: Array) -> Array:
    return jax.lax.map(draw, jax.random.split(key, length))


def recorded(init: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """The params of init(key, *args) as `Recorded` shapes; computes nothing.

    Raises:
      ValueError: names the parameters whose initialiser is none of this module.
    """
    token = _recording.set(True)
    try:
        params = jax.eval_shape(init, jax.random.key(0), *args)["params"]
    finally:
        _recording.reset(token)
    leaves = flatten_dict(params)
    unknown = sorted("/".join(path) for path in leaves if not isinstance(leaves[path], Recorded))
    if unknown:
        raise ValueError(
            "expected an initialiser of zmar_jax.flow.initializers for every parameter, got others "
            "for " + ", ".join(unknown)
        )
    return params


def draw(params: dict[str, Any], rng: Array) -> Any:
    """Arrays for the tree that `recorded` gave, by its initialisers."""
    leaves: dict[Path, Any] = flatten_dict(params)
    keys = dict(zip((FanIn, Normal, Orthogonal), jax.random.split(rng, 3), strict=True))
    drawn: dict[Path, Array] = {}
    for kind in {type(leaf.initializer) for leaf in leaves.values()}:
        mine = {p: leaves[p] for p in sorted(leaves) if type(leaves[p].initializer) is kind}
        key = keys.get(kind)
        if key is None:
            key = jax.random.fold_in(rng, zlib.crc32(kind.__qualname__.encode()))
        drawn |= kind.all(mine, key)
    return unflatten_dict({path: drawn[path] for path in leaves})
