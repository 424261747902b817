"""The bridge to the PyTorch release, without importing torch.

Imports: config, files, models.
"""

from zmar_jax.torch_port.files import WeightsError as WeightsError
from zmar_jax.torch_port.files import read_state_dict as read_state_dict
from zmar_jax.torch_port.files import shard_of as shard_of
from zmar_jax.torch_port.files import weights_format as weights_format
from zmar_jax.torch_port.files import write_pth as write_pth
from zmar_jax.torch_port.files import write_safetensors as write_safetensors
from zmar_jax.torch_port.keys import key_table as key_table
from zmar_jax.torch_port.port import infer_config as infer_config
from zmar_jax.torch_port.port import params_checksum as params_checksum
from zmar_jax.torch_port.port import to_params as to_params
from zmar_jax.torch_port.port import to_state_dict as to_state_dict
from zmar_jax.torch_port.settings import BRIGHTNESS as BRIGHTNESS
from zmar_jax.torch_port.settings import StateDict as StateDict
from zmar_jax.torch_port.settings import unpublished as unpublished
