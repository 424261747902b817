"""Random numbers by counting: a hash of (seed, counters), the same in NumPy and JAX, bit for bit.

`xp` is numpy or jax.numpy. A pixel's number depends on its place alone, so a window of an image
can be drawn without the rest. Integer arithmetic and look-ups only: NumPy and XLA round
logarithms, and products that are added, differently.
"""

import functools
import hashlib
from typing import Any

import numpy as np
from scipy.special import ndtri

Array = Any
"""Of numpy or of jax.numpy."""


def id_seed(seed: int, name: str) -> int:
    """A seed, below 2**32, for what is called `name`: the same in every process, on every host."""
    return int.from_bytes(name_digest(f"{seed}/{name}", 4), "little")


def name_digest(text: str, size: int) -> bytes:
    """A digest of so many bytes of text that may have names of files in it, in any encoding."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).digest()


def fold(seed: Array, *counters: Array, xp: Any = np) -> Array:
    """uint32 hashes of a seed and whole numbers, each below 2**32; they broadcast.

    A hash is a good seed, and 32 good random bits.
    """
    h = xp.asarray(seed, dtype=xp.uint32)
    for counter in counters:
        step = xp.multiply(xp.asarray(counter).astype(xp.uint32), xp.uint32(0x9E3779B9))
        if xp is not np:  # which does so itself, faster; JAX would warn
            h, step = xp.broadcast_arrays(h, step)
        # the constant keeps seed 0 and counter 0 from the hash's fixed point 0
        h = _mix(xp.add(xp.add(h, xp.uint32(0x85EBCA6B)), step), xp)
    return h


def top16(bits: Array, xp: Any = np) -> Array:
    """The upper half of random bits, int32 in 0..65535: an index of a table of that size."""
    return xp.right_shift(bits, xp.uint32(16)).astype(xp.int32)


def below(bits: Array, n: int, xp: Any = np) -> Array:
    """int32 in 0..n-1, n from 1 to 32768; uniform up to steps of 1/65536."""
    return xp.right_shift(top16(bits, xp) * xp.int32(n), 16)


@functools.cache
def normal_quantiles() -> np.ndarray:
    """float32 [65536]: quantiles of the standard normal distribution, from -4.3 to 4.3.

    The one at `top16(bits)` is a standard normal number.
    """
    return ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)


def _mix(h: Array, xp: Any) -> Array:
    # "lowbias32" of Wellons' hash-prospector. Functions, as the operators of NumPy's scalars warn
    # of the overflow that is meant here.
    h = xp.bitwise_xor(h, xp.right_shift(h, xp.uint32(16)))
    h = xp.multiply(h, xp.uint32(0x7FEB352D))
    h = xp.bitwise_xor(h, xp.right_shift(h, xp.uint32(15)))
    h = xp.multiply(h, xp.uint32(0x846CA68B))
    return xp.bitwise_xor(h, xp.right_shift(h, xp.uint32(16)))
