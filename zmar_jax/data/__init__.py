"""Datasets, the loss of light and of pixels, and batches of both."""

from zmar_jax.data.errors import DataError as DataError
