"""The gradient of the feed-forward pass, on a TPU; it reads x and the result's gradient alone.

Grid: [groups of IMAGES images, H + 2]. Step h makes the hidden channels of row h again, then
dconv, the gradient of what the depthwise convolution gives, in row h - 1, and from three rows of
dconv the gradient of x in row h - 2. Two rings of three rows are in VMEM. The gradients of the
weights are sums over all steps in float32: they lie in VMEM until the last.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from zmar_jax.kernels.pallas import parts
from zmar_jax.kernels.pallas.parts import IMAGES, LANES, Ring

Array = jax.Array


class Inputs(NamedTuple):
    """What a step reads.

    Rows are [1, W, IMAGES, C], `dy` is the gradient of the result. `into` is [C, 2 F], `into_t`
    transposed; `back_t` is [C, F].
    """

    x_ahead: Any
    x_behind: Any
    dy_here: Any
    dy_behind: Any
    scale: Any
    bias: Any
    into: Any
    into_t: Any
    taps: Any
    back_t: Any


class Outputs(NamedTuple):
    """The gradient of row h - 2 of x, and of the weights; sums over images are the caller's.

    `scale`, `bias`: [IMAGES, C]. `into`: [C, 2 F]. `taps`: [9, IMAGES, 2 F]. `back_t`: [C, F].
    """

    x: Any
    scale: Any
    bias: Any
    into: Any
    taps: Any
    back_t: Any


class Scratch(NamedTuple):
    """`hidden`, `dconv`: of `Ring`, 2 F channels.

    `gate` [columns, IMAGES, F] is the gradient of gelu(a) b, then that itself.
    `dhidden` [columns, IMAGES, 2 F] is the gradient of the hidden channels.
    """

    hidden: Any
    dconv: Any
    gate: Any
    dhidden: Any


def kernel(*refs: Any, height: int, eps: float) -> None:
    """One step, of `Inputs`, `Outputs`, `Scratch`, one after the other."""
    given, rest = Inputs(*refs[:10]), refs[10:]
    found, scratch = Outputs(*rest[:6]), Scratch(*rest[6:])
    pixels = parts.columns(given.x_ahead.shape[1])[1]
    group, step = pl.program_id(0), pl.program_id(1)
    hidden, dconv = (Ring(a, pixels) for a in (scratch.hidden, scratch.dconv))

    @pl.when((group == 0) & (step == 0))
    def _() -> None:
        for total in found[1:]:
            total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(step == 0)
    def _() -> None:
        hidden.clear()
        dconv.clear()

    pl.when(step < height)(lambda: _hidden_row(step, given, hidden, eps))
    pl.when(step == height)(lambda: hidden.clear_row(step))
    pl.when((step > 0) & (step <= height))(
        lambda: _dconv_row(step, given, found, scratch, hidden, dconv)
    )
    pl.when(step == height + 1)(lambda: dconv.clear_row(step))
    pl.when(step > 1)(lambda: _dx_row(step, given, found, scratch.dhidden, dconv, eps))


def _hidden_row(step: Array, given: Inputs, hidden: Ring, eps: float) -> None:
    unit, _ = parts.normalized(given.x_ahead[0].astype(jnp.float32), eps)
    normed = parts.flat(unit * given.scale[...] + given.bias[...], given.into.dtype)
    y = parts.product(normed, given.into[...])
    hidden.put(step, 0, slice(None), y.reshape(*unit.shape[:2], -1))


def _dconv_row(
    step: Array, given: Inputs, found: Outputs, scratch: Scratch, hidden: Ring, dconv: Ring
) -> None:
    """dconv of a row, and what the row adds to the gradients of the taps and of `back`."""
    gate, taps = scratch.gate, given.taps
    columns, _, half = gate.shape
    width = given.dy_here.shape[1]
    dy = parts.flat(given.dy_here[0], given.back_t.dtype)
    gate[:width] = parts.product(dy, given.back_t[...]).reshape(width, -1, half)
    if columns > width:  # columns that only fill the last turn have no gradient
        gate[width:] = jnp.zeros((columns - width, *gate.shape[1:]), jnp.float32)

    def gradient(first: Any) -> None:
        lanes = [parts.lanes_from(first), parts.lanes_from(half + first)]
        weights = [[taps[t, :, :, mine] for t in range(9)] for mine in lanes]

        def turn(i: Array, sums: list[Array]) -> list[Array]:
            w = i * hidden.pixels
            windows = [hidden.window(step, w, mine) for mine in lanes]
            a, b = map(parts.convolve, windows, weights)
            share, density = parts.normal(a)
            here = pl.ds(w, hidden.pixels), slice(None), lanes[0]
            dgate = gate[here]
            gate[here] = a * share * b
            both = dgate * b * (share + a * density), dgate * a * share
            for mine, d in zip(lanes, both, strict=True):
                dconv.put(step, w, mine, d)
            new = [(x * d).sum(0) for window, d in zip(windows, both, strict=True) for x in window]
            return [old + more for old, more in zip(sums, new, strict=True)]

        zeros = [jnp.zeros((IMAGES, LANES), jnp.float32)] * 18
        sums = lax.fori_loop(0, columns // hidden.pixels, turn, zeros)
        for t, total in enumerate(sums):
            found.taps[t % 9, :, lanes[t // 9]] += total

    parts.over_lanes(half, gradient)
    found.back_t[...] += parts.product(dy, parts.flat(gate[:width], dy.dtype), (0, 0))


def _dx_row(
    step: Array, given: Inputs, found: Outputs, dhidden: Any, dconv: Ring, eps: float
) -> None:
    """The gradient of x in a row, and what the row adds to those of `into`, scale and bias."""
    columns, _, channels = dhidden.shape
    width = given.x_behind.shape[1]

    def transposed(first: Any) -> None:
        mine = parts.lanes_from(first)
        weights = [given.taps[t, :, :, mine] for t in reversed(range(9))]

        @pl.loop(0, columns, step=dconv.pixels)
        def _(w: Any) -> None:
            d = parts.convolve(dconv.window(step, w, mine), weights)
            dhidden[pl.ds(w, dconv.pixels), :, mine] = d

    parts.over_lanes(channels, transposed)
    unit, inverse = parts.normalized(given.x_behind[0].astype(jnp.float32), eps)
    d = parts.flat(dhidden[:width], given.into.dtype)
    normed = parts.flat(unit * given.scale[...] + given.bias[...], d.dtype)
    found.into[...] += parts.product(normed, d, (0, 0))
    dnormed = parts.product(d, given.into_t[...]).reshape(unit.shape)
    found.scale[...] += (dnormed * unit).sum(0)
    found.bias[...] += dnormed.sum(0)
    dunit = dnormed * given.scale[...]
    mean, along = (a.mean(-1, keepdims=True) for a in (dunit, dunit * unit))
    dx = inverse * (dunit - mean - unit * along)
    found.x[0] = (given.dy_behind[0].astype(jnp.float32) + dx).astype(found.x.dtype)
