"""Pure array functions: what an image becomes, and the convolutions in their fast forms.

Arrays are NHWC. Kernels are HWIO; a depthwise kernel is [3, 3, 1, C].
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zmar_jax import tpu

Array = jax.Array

HIGHEST = lax.Precision.HIGHEST
"""Float32 products stay float32 on TPU and GPU; on bfloat16 operands it changes nothing."""


def wide(dtype: Any) -> Any:
    """At least float32: what statistics, log-determinants and the flow's state are kept in."""
    return jnp.promote_types(dtype, jnp.float32)


def hidden_cast(x: Array, policy: str) -> Array:
    """x as the policy computes hidden layers: in bfloat16, or as it is."""
    return x.astype(jnp.bfloat16) if policy == "bfloat16" else x


def network_input(image: Any) -> tuple[Array, Array]:
    """What the encoder reads (SPEC section 1).

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
      ValueError: signed integers, whose range says nothing.
    """
    x = jnp.asarray(image)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        if not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            raise ValueError(f"expected unsigned integers or floats in [0, 1], got {x.dtype}")
        # x * (1/255) differs from x / 255 in the last bit, and XLA rewrites division by a constant
        x = x.astype(jnp.float32) / lax.optimization_barrier(jnp.float32(jnp.iinfo(x.dtype).max))
    return x.astype(jnp.float32)


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
    pads = [(0, -size % multiple if axis in axes else 0) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, pads, mode="reflect") if any(after for _, after in pads) else x


def shrink(x: Array, factor: int) -> Array:
    """Bilinear resize to 1/factor (2, 4 or 8), half-pixel centres, no antialiasing.

    At these factors that is the mean of the centre 2x2 of each factor x factor (SPEC section 3).
    """
    b, h, w, c = x.shape
    low = factor // 2 - 1
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x[:, :, low : low + 2, :, low : low + 2].mean((2, 4))


def level_masks(mask: Array, grid: int = 4, threshold: float = 0.2) -> tuple[Array, Array, Array]:
    """The masks of encoder levels 1, 2 and 3, padded to multiples of `grid` (SPEC section 2).

    Args:
      mask: [B, H, W, 1], H and W multiples of 8.
    """
    half, quarter = ((shrink(mask, f) > threshold).astype(mask.dtype) for f in (2, 4))
    m1, m2, m3 = (pad_to_multiple(m, grid) for m in (mask, half, quarter))
    return m1, m2, m3


def cell_attention(mask: Array, grid: int) -> Array:
    """A = softmax(M M^T) of the mask's grid x grid cells (SPEC section 2, ZMA steps 3 and 4).

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
    return lax.platform_dependent(
        x.reshape(-1, x.shape[-1]),
        cpu=lambda x: jnp.matmul(jnp.ones(len(x), x.dtype), x, precision=HIGHEST),
        default=lambda x: x.sum(0),
    )


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
    return lax.platform_dependent(x, cpu=folded, default=mean)


def gelu(x: Array) -> Array:
    """Exact GELU by erf; `nn.gelu` goes by erfc, four times slower on CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def conv1(x: Array, kernel: Array) -> Array:
    """1x1 convolution: [B, H, W, I] with [I, O] -> [B, H, W, O], in the dtype of x."""
    # of two axes, as the gradients of a product over four are five times slower on CPU
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype), precision=HIGHEST)
    return flat.reshape(*x.shape[:-1], -1)


def gram(q: Array, k: Array) -> Array:
    """q^T k of each image, [B, N, I] and [B, N, J] -> [B, I, J], float32 at least."""
    wanted = wide(q.dtype)
    if q.shape[0] == 1:  # the gradient of a batch of one transposes pixels on CPU
        product = jnp.matmul(q[0].T, k[0], precision=HIGHEST, preferred_element_type=wanted)
        return product[None]
    return jnp.matmul(q.mT, k, precision=HIGHEST, preferred_element_type=wanted)


def conv3(x: Array, kernel: Array) -> Array:
    """3x3 convolution, zero padding 1: [B, H, W, I] with [3, 3, I, O], in the dtype of x."""
    return _conv3(x, kernel.astype(x.dtype))


@jax.custom_vjp
def _conv3(x: Array, kernel: Array) -> Array:
    if not tpu.narrow(x.shape[-1], x.dtype):
        return _plain_conv3(x, kernel)
    return lax.platform_dependent(x, kernel, tpu=tpu.conv3, default=_plain_conv3)


def _plain_conv3(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=HIGHEST
    )


def _conv3_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # XLA's own weight gradient is ten times slower than nine matmuls on CPU inside a scan
    # (DESIGN, "Gradients need care"); on TPU the nine take longer to compile, and to run.
    x, kernel = residuals
    dx = _conv3(dy, kernel[::-1, ::-1].swapaxes(2, 3))

    def product(tap: Array, dy: Array) -> Array:
        tap, dy = (a.reshape(-1, a.shape[-1]) for a in (tap, dy))
        return jnp.matmul(tap.T, dy, precision=HIGHEST)

    return dx, _tap_gradients(product, pad1(x), dy, kernel.shape)


_conv3.defvjp(lambda x, kernel: (_conv3(x, kernel), (x, kernel)), _conv3_bwd)


@jax.custom_vjp
def dw3(x: Array, kernel: Array) -> Array:
    """Depthwise 3x3 convolution without padding: [B, H+2, W+2, C] with [3, 3, 1, C].

    Nine shifted multiply-adds that XLA fuses into one loop; `lax.conv` with
    `feature_group_count=C` is ten times slower on CPU.
    """
    weights = kernel.astype(x.dtype).reshape(9, 1, 1, 1, -1)
    return functools.reduce(operator.add, map(operator.mul, _taps(x), weights))


def _dw3_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dy = jnp.pad(dy, ((0, 0), (2, 2), (2, 2), (0, 0)))
    gradients = lax.platform_dependent(
        x, kernel[::-1, ::-1], dy, cpu=_dw3_gradients_cpu, default=_dw3_gradients
    )
    return gradients[0], gradients[1].reshape(kernel.shape).astype(kernel.dtype)


def _dw3_gradients(x: Array, reverse: Array, dy: Array) -> tuple[Array, Array]:
    """Gradients of x and, [9, C], of the kernel, from padded dy [B, H+4, W+4, C]."""
    products = [jnp.sum(x * tap, (0, 1, 2), dtype=wide(x.dtype)) for tap in _taps(dy)]
    return dw3(dy, reverse), jnp.stack(products[::-1])


def _dw3_gradients_cpu(x: Array, reverse: Array, dy: Array) -> tuple[Array, Array]:
    """The same in a loop over rows, before which XLA must finish dy.

    It would compute dy anew in each of ten loops otherwise, and no barrier stops it. Its sums over
    axes before the last are scalar code, so rows are added and columns multiplied with ones.
    """
    b, height, width, c = x.shape
    count = math.ceil(height / 16)
    rows = math.ceil(height / count)
    ones = jnp.ones((1, b * width), wide(x.dtype))

    def product(x: Array, tap: Array) -> Array:
        rows_of = (a.astype(ones.dtype).swapaxes(0, 1) for a in (x, tap))
        summed = functools.reduce(operator.add, map(operator.mul, *rows_of))
        return jnp.matmul(ones, summed.reshape(-1, c), precision=HIGHEST)

    def step(done: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        dx, total = done
        start = jnp.minimum(i * rows, height - rows)
        mine = lax.dynamic_slice_in_dim(x, start, rows, axis=1)
        near = lax.dynamic_slice_in_dim(dy, start, rows + 2, axis=1)
        dx = lax.dynamic_update_slice_in_dim(dx, dw3(near, reverse), start, axis=1)
        if height % count:  # the last rows overlap those before
            fresh = (start + jnp.arange(rows) >= i * rows).reshape(1, -1, 1, 1)
            mine = jnp.where(fresh, mine, 0)
        products = [product(mine, tap) for tap in _taps(near)]
        return (dx, total + jnp.concatenate(products[::-1])), None

    zeros = jnp.zeros_like(x), jnp.zeros((9, c), ones.dtype)
    return lax.scan(step, zeros, jnp.arange(count))[0]


dw3.defvjp(lambda x, kernel: (dw3(x, kernel), (x, kernel)), _dw3_bwd)


def _tap_gradients(
    product: Callable[[Array, Array], Array],
    x: Array,
    dy: Array,
    shape: tuple[int, ...],
) -> Array:
    """product(tap, dy) of the nine taps of padded x, as the kernel's gradient, of this shape.

    On CPU in stripes of rows, which stay in the caches: three to five times faster at 160x160.
    On TPU one convolution.
    """

    def whole(x: Array, dy: Array) -> Array:
        return jnp.stack([product(tap, dy) for tap in _taps(x)]).reshape(shape)

    def striped(x: Array, dy: Array) -> Array:
        width = max(x.shape[-1], dy.shape[-1])
        rows = _divisor(dy.shape, width, max(_TAP_BYTES, 4 * math.prod(shape)))
        if rows == dy.shape[1]:
            return whole(x, dy)

        def add(total: Array, start: Array) -> tuple[Array, None]:
            stripe = lax.dynamic_slice_in_dim(x, start, rows + 2, axis=1)
            return total + whole(stripe, lax.dynamic_slice_in_dim(dy, start, rows, axis=1)), None

        zeros = jnp.zeros(shape, jax.eval_shape(whole, x, dy).dtype)
        return lax.scan(add, zeros, jnp.arange(0, dy.shape[1], rows))[0]

    return lax.platform_dependent(x, dy, cpu=striped, tpu=tpu.conv3_weight_gradient, default=whole)


_TAP_BYTES = 256 << 10


def _taps(x: Array) -> list[Array]:
    """The nine shifted views of padded x, in the order of a kernel's rows and columns."""
    _, h, w, _ = x.shape
    return [x[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3)]


def pad1(x: Array) -> Array:
    """One zero pixel around [B, H, W, C]."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _divisor(shape: tuple[int, ...], width: int, stripe_bytes: int) -> int:
    """Rows of a stripe whose `width` channels take about `stripe_bytes`, a divisor of H.

    Rather too many rows than thin stripes, mostly halo.
    """
    b, h, w, _ = shape
    most = max(stripe_bytes // (4 * b * w * width), 1)
    divisors = [r for r in range(1, h + 1) if h % r == 0 and r > most / 4]
    return max((r for r in divisors if r <= most), default=min(divisors, default=h))
