"""ZMAR-SNFlow, low-light restoration, in JAX: number for number with the PyTorch release."""

from zmar_jax import torch_port as torch_port
from zmar_jax.config import ModelConfig as ModelConfig
from zmar_jax.models import ZmarSNFlow as ZmarSNFlow
from zmar_jax.restore import load_restorer as load_restorer

__version__ = "0.1.0"
