"""Pure array functions of NHWC arrays: what an image becomes, and what acts on channels."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation

Array = jax.Array

HIGHEST = lax.Precision.HIGHEST
"""Float32 products stay float32 on TPU and GPU; on bfloat16 operands it changes nothing."""


def wide(dtype: Any) -> Any:
    """At least float32: what statistics, log-determinants and the flow's state are kept in."""
    return jnp.promote_types(dtype, jnp.float32)


def hidden_cast(x: Array, policy: str) -> Array:
    """x as the policy computes hidden layers: in bfloat16, or as it is."""
    return x.astype(jnp.bfloat16) if policy == "bfloat16" else x


def by_platform(*arrays: Array, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """The form for the platform, as `lax.platform_dependent`.

    With a mesh in context its devices say which, and no conditional is left in the program: XLA
    keeps those that hold a collective, and on several devices of one CPU such a collective may
    run beside others, in another order on each device, until none can go on.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None:
        return lax.platform_dependent(*arrays, default=default, **forms)
    platform = "cuda" if device.platform == "gpu" else device.platform
    return forms.get(platform, default)(*arrays)


def in_float32(form: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays that computes bfloat16 ones in float32, at which CPUs are faster.

    What it returns has the dtype of the first.
    """

    def computed(*arrays: Array) -> Any:
        dtype = arrays[0].dtype
        found = form(*(array.astype(wide(array.dtype)) for array in arrays))
        return jax.tree.map(lambda array: array.astype(dtype), found)

    return computed


def network_input(image: Any) -> tuple[Array, Array]:
    """What the encoder reads (model.md section 1).

    Args:
      image: [B, H, W, 3] RGB, an unsigned integer type (its full range) or float in [0, 1].

    Returns:
      lr: log(max(x + 1e-3, 1e-3)), float32 [B, H, W, 3].
      mask: 1 where the pixel is lost or a channel is nearly dead, else 0, float32 [B, H, W, 1].

    Raises:
      ValueError: not [B, H, W, 3], or signed integers, whose range says nothing.
    """
    if image.ndim != 4 or image.shape[-1] != 3:
        raise ValueError(f"expected an RGB batch [B, H, W, 3], got {image.shape}")
    x = to_unit(image)
    fractions = x / (x.sum(-1, keepdims=True) + 1e-4)
    mask = 1.0 - jnp.all(fractions > 0.1, axis=-1, keepdims=True).astype(jnp.float32)
    return jnp.log(jnp.maximum(x + 1e-3, 1e-3)), mask


def to_unit(image: Any) -> Array:
    """Any image as float32 in [0, 1]: unsigned integers are divided by their largest value.

    Raises:
      ValueError: signed integers, whose range says nothing; floats far outside of [0, 1], where
        they are known, which they are not inside `jax.jit`.
    """
    x = jnp.asarray(image)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.size and not isinstance(x, Tracer):
        low, high = float(x.min()), float(x.max())
        if low < -0.5 or high > 1.5:
            raise ValueError(
                f"expected floats in [0, 1], got {low:.4g} to {high:.4g}; divide by the value of "
                "white, or give uint8"
            )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        if not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            raise ValueError(f"expected unsigned integers or floats in [0, 1], got {x.dtype}")
        # x * (1/255) differs from x / 255 in the last bit, and XLA rewrites division by a constant
        x = x.astype(jnp.float32) / lax.optimization_barrier(jnp.float32(jnp.iinfo(x.dtype).max))
    return x.astype(jnp.float32)


def to_pixels(x: Array) -> Array:
    """What the flow gives, clipped to [0, 1]; NaN where it is not finite, infinite pixels too."""
    return jnp.where(jnp.isfinite(x), jnp.clip(x, 0, 1), jnp.nan)


def squeeze2(x: Array) -> Array:
    """[B, H, W, C] -> [B, H/2, W/2, 4C]; channel c, offset (dy, dx) goes to 4c + 2dy + dx.

    Raises:
      ValueError: H or W is odd.
    """
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"height and width must be even, got {h}x{w}")
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze2(x: Array) -> Array:
    """The inverse of `squeeze2`: [B, H, W, 4C] -> [B, 2H, 2W, C].

    Raises:
      ValueError: the channels are not a multiple of 4.
    """
    b, h, w, c = x.shape
    if c % 4:
        raise ValueError(f"channels must be a multiple of 4, got {c}")
    x = x.reshape(b, h, w, c // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


def pad_to_multiple(x: Array, multiple: int, axes: Sequence[int] = (1, 2)) -> Array:
    """Reflect-pads [B, H, W, C] at the bottom and right, or one of them, to multiples."""
    after = [-size % multiple if axis in axes else 0 for axis, size in enumerate(x.shape)]
    if not all(isinstance(more, int) for more in after):
        for axis, more in enumerate(after):
            x = x if isinstance(more, int) and not more else _reflected(x, axis, more)
        return x
    return jnp.pad(x, [(0, more) for more in after], mode="reflect") if any(after) else x


def _reflected(x: Array, axis: int, after: Any) -> Array:
    """x with so many pixels more, where `jnp.pad` refuses a number that is not known yet."""
    size = x.shape[axis]
    at = jnp.arange(size + after)
    return jnp.take(x, jnp.where(at < size, at, 2 * (size - 1) - at), axis)


def surely(comparison: Callable[[], bool]) -> bool:
    """Whether a comparison of sizes is true, whatever those that are symbolic (jax.export) are."""
    try:
        return comparison()
    except InconclusiveDimensionOperation:
        return False


def shrink(x: Array, factor: int) -> Array:
    """Bilinear resize to 1/factor (a power of 2), half-pixel centres, no antialiasing.

    That is the mean of the centre 2x2 of each factor x factor (model.md section 3).
    """
    b, h, w, c = x.shape
    low = factor // 2 - 1
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x[:, :, low : low + 2, :, low : low + 2].mean((2, 4))


def level_masks(mask: Array, levels: int, grid: int = 4, threshold: float = 0.2) -> list[Array]:
    """Masks of the encoder's levels, from 1, padded to multiples of `grid` (model.md section 2).

    Args:
      mask: [B, H, W, 1], H and W multiples of 2**levels.
    """
    factors = [2**level for level in range(1, levels)]
    smaller = [(shrink(mask, f) > threshold).astype(mask.dtype) for f in factors]
    return [pad_to_multiple(m, grid) for m in (mask, *smaller)]


def cell_attention(mask: Array, grid: int) -> Array:
    """A = softmax(M M^T) of the mask's grid x grid cells (model.md section 2, ZMA steps 3 and 4).

    Args:
      mask: [B, H, W, 1], H and W multiples of `grid`.

    Returns:
      [B, grid, grid, grid, grid] float32: output cell (row, col), then input cell (row, col).
    """
    b, h, w, _ = mask.shape
    cells = mask.astype(wide(mask.dtype)).reshape(b, grid, h // grid, grid, w // grid)
    m = cells.transpose(0, 1, 3, 2, 4).reshape(b, grid * grid, -1)
    m = m / jnp.maximum(jnp.linalg.norm(m, axis=-1, keepdims=True), 1e-12)
    logits = jnp.einsum("bpt,bqt->bpq", m, m, precision=HIGHEST)
    return jax.nn.softmax(logits).reshape(b, grid, grid, grid, grid)


def mix_cells(x: Array, attention: Array) -> Array:
    """out[cell p] = sum over q of A[p, q] x[cell q]; x [B, H, W, C], A from `cell_attention`."""
    b, h, w, c = x.shape
    grid = attention.shape[1]
    cells = x.reshape(b, grid, h // grid, grid, w // grid, c)
    mixed = jnp.einsum("bijkl,bkhlwc->bihjwc", attention.astype(x.dtype), cells, precision=HIGHEST)
    return mixed.reshape(b, h, w, c)


def channels(v: Array) -> Array:
    """[C] as [1, 1, 1, C], to meet NHWC arrays without rank promotion."""
    return v.reshape(1, 1, 1, -1)


@jax.custom_vjp
def affine(x: Array, scale: Array, bias: Array) -> Array:
    """x * scale + bias, [B, H, W, C] with [C]; its gradient adds over pixels by products on CPU."""
    return x * channels(scale) + channels(bias)


def _affine_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, scale = residuals
    return dy * channels(scale), pixel_sum(dy * x), pixel_sum(dy)


affine.defvjp(lambda x, scale, bias: (affine(x, scale, bias), (x, scale)), _affine_bwd)


def pixel_sum(x: Array) -> Array:
    """Over all axes but the last; a product with ones on CPU, where sums over rows are slow."""
    return by_platform(
        x.reshape(-1, x.shape[-1]),
        cpu=lambda x: jnp.matmul(jnp.ones(len(x), x.dtype), x, precision=HIGHEST),
        default=lambda x: x.sum(0),
    )


@jax.custom_vjp
def square_sum(x: Array) -> Array:
    """Sums of squares over the pixels: [B, H, W, C] -> [B, C], float32 at least."""
    return by_platform(x, cpu=_square_sum_cpu, default=_square_sum)


def _square_sum(x: Array) -> Array:
    return jnp.square(x.astype(wide(x.dtype))).sum((1, 2))


def _square_sum_cpu(x: Array) -> Array:
    """A few rows at a time, in a loop before which XLA must finish x.

    It would compute x anew for the squares otherwise, and add rows in scalar code.
    """
    b, h, w, c = x.shape
    few = max(rows for rows in range(1, 9) if surely(lambda r=rows: h % r == 0))

    def add(total: Array, start: Array) -> tuple[Array, None]:
        rows = lax.dynamic_slice_in_dim(x, start, few, 1).astype(total.dtype)
        squares = [jnp.square(rows[:, i]) for i in range(few)]
        return total + functools.reduce(operator.add, squares), None

    zeros = jnp.zeros((b, w, c), wide(x.dtype))
    total = lax.scan(add, zeros, jnp.arange(0, h, few))[0]
    return jnp.matmul(jnp.ones((w,), total.dtype), total, precision=HIGHEST)


def _square_sum_bwd(x: Array, dy: Array) -> tuple[Array]:
    b, c = dy.shape
    return ((2 * x * dy.reshape(b, 1, 1, c)).astype(x.dtype),)


square_sum.defvjp(lambda x: (square_sum(x), x), _square_sum_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalize(x: Array, eps: float) -> Array:
    """x with mean 0 and variance 1 (biased, plus eps) over the last axis."""
    return _normalize(x, eps)[0]


def _normalize(x: Array, eps: float) -> tuple[Array, Array]:
    y = x - channel_mean(x)
    scale = lax.rsqrt(channel_mean(jnp.square(y)) + eps)
    return y * scale, scale


def _normalize_fwd(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    y, scale = _normalize(x, eps)
    return y, (y, scale)


def _normalize_bwd(eps: float, residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    y, scale = residuals
    return (scale * (dy - channel_mean(dy) - y * channel_mean(y * dy)),)


normalize.defvjp(_normalize_fwd, _normalize_bwd)


def channel_mean(x: Array) -> Array:
    """Over the last axis, [..., C] -> [..., 1].

    On CPU thirty-twos of channels are added up first: XLA cuts longer sums into windows of 32, and
    takes two to three times as long.
    """

    def mean(x: Array) -> Array:
        return x.mean(-1, keepdims=True)

    count, rest = divmod(x.shape[-1], 32)
    if rest or count < 2:
        return mean(x)
    folded = lambda x: mean(functools.reduce(operator.add, jnp.split(x, count, -1))) / count  # noqa: E731
    return by_platform(x, cpu=folded, default=mean)


def gelu(x: Array) -> Array:
    """Exact GELU by erf; `nn.gelu` goes by erfc, four times slower on CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))
