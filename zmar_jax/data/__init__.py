"""Datasets, the loss of light and of pixels, and batches of both.

Imports: config, files, imaging.
"""

from zmar_jax.data.errors import DataError as DataError
