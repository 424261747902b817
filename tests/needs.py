"""Marks of tests that need what is not always installed."""

import importlib.util

import pytest

torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: pip install 'zmar-jax[torch]'",
)
