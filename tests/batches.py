"""Batches of a loader, and whether they are the same."""

import itertools

import numpy as np

from zmar_jax.data.pipeline import Batch, Loader


def first(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
