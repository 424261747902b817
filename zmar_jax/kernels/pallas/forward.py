"""The feed-forward pass of a block, x + conv1(gelu(a) b), a, b = dw3(conv1(LN(x))), on a TPU.

Grid: [groups of IMAGES images, H + 1]. Step h brings row h of x into VMEM, makes its hidden
channels, and finishes row h - 1, whose three rows of hidden channels are then all there. So x is
read (twice) and written once, and no hidden channel leaves VMEM.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from zmar_jax.kernels.pallas import parts
from zmar_jax.kernels.pallas.parts import Ring


def kernel(
    ahead: Any, here: Any, scale: Any, bias: Any, into: Any, taps: Any, back: Any,
    out: Any, hidden: Any, gate: Any, *, height: int, eps: float
) -> None:  # fmt: skip
    """One step.

    Args:
      ahead, here, out: [1, W, IMAGES, C], row h of x, row h - 1 of x and of the result.
      scale, bias: [1, 1, C]. into: [C, 2 F]; back: [F, C]. taps: [9, 1, 1, 2 F].
      hidden: scratch of `Ring`, 2 F channels. gate: scratch [columns, IMAGES, F].
    """
    width, half = here.shape[1], gate.shape[-1]
    turns, pixels = parts.columns(width)
    step, ring = pl.program_id(1), Ring(hidden, pixels)

    pl.when(step == 0)(ring.clear)
    pl.when(step == height)(lambda: ring.clear_row(step))

    @pl.when(step < height)
    def _() -> None:
        unit, _ = parts.normalized(ahead[0].astype(jnp.float32), eps)
        y = parts.product(parts.flat(unit * scale[...] + bias[...], into.dtype), into[...])
        ring.put(step, 0, slice(None), y.reshape(width, -1, 2 * half))

    @pl.when(step > 0)
    def _() -> None:
        def gated(first: Any) -> None:
            lanes = [parts.lanes_from(first), parts.lanes_from(half + first)]
            weights = [[taps[t, :, :, mine] for t in range(9)] for mine in lanes]

            @pl.loop(0, turns * pixels, step=pixels)
            def _(w: Any) -> None:
                a, b = (
                    parts.convolve(ring.window(step, w, mine), weight)
                    for mine, weight in zip(lanes, weights, strict=True)
                )
                gate[pl.ds(w, pixels), :, lanes[0]] = a * parts.normal(a)[0] * b

        parts.over_lanes(half, gated)
        y = parts.product(parts.flat(gate[:width], back.dtype), back[...])
        x = here[0].astype(jnp.float32)
        out[0] = (x + y.reshape(x.shape)).astype(out.dtype)
