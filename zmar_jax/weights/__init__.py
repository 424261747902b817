"""Weights: files and folders of any format, and those that come with the package.

Imports: config, files, models, torch_port.
"""

from zmar_jax.weights.files import BUNDLED as BUNDLED
from zmar_jax.weights.files import Weights as Weights
from zmar_jax.weights.files import load_weights as load_weights
from zmar_jax.weights.files import parameter_counts as parameter_counts
from zmar_jax.weights.files import save_weights as save_weights
