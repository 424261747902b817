"""Modules that moved are found under their old names."""

import importlib
import sys

import pytest

from zmar_jax.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_old_names_are_the_same_modules(old: str, new: str) -> None:
    expected = importlib.import_module(f"zmar_jax.{new}")
    sys.modules.pop(f"zmar_jax.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"zmar_jax\.{old} is zmar_jax\.{new} since"):
        importlib.import_module(f"zmar_jax.{old}")
    assert importlib.import_module(f"zmar_jax.{old}") is expected
    assert expected.__name__ == f"zmar_jax.{new}"


@pytest.mark.filterwarnings("ignore:zmar_jax.metrics is zmar_jax.imaging.metrics")
def test_from_the_package() -> None:
    from zmar_jax import metrics  # pyright: ignore[reportAttributeAccessIssue]
    from zmar_jax.imaging.metrics import score

    assert metrics.score is score


def test_other_names_are_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"zmar_jax\.nothing"):
        importlib.import_module("zmar_jax.nothing")
