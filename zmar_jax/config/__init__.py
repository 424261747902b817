"""Every size and setting as a typed, frozen field; presets; YAML in and out.

Imports: files.
"""

from zmar_jax.config.checks import ConfigError as ConfigError
from zmar_jax.config.data import BENCHMARKS as BENCHMARKS
from zmar_jax.config.data import DarkenConfig as DarkenConfig
from zmar_jax.config.data import DataConfig as DataConfig
from zmar_jax.config.data import MaskConfig as MaskConfig
from zmar_jax.config.data import NightConfig as NightConfig
from zmar_jax.config.files import config_names as config_names
from zmar_jax.config.files import dump_config as dump_config
from zmar_jax.config.files import from_dict as from_dict
from zmar_jax.config.files import load_config as load_config
from zmar_jax.config.files import override as override
from zmar_jax.config.files import to_dict as to_dict
from zmar_jax.config.files import to_flat as to_flat
from zmar_jax.config.model import PRESETS as PRESETS
from zmar_jax.config.model import ModelConfig as ModelConfig
from zmar_jax.config.run import Config as Config
from zmar_jax.config.run import without_places as without_places
from zmar_jax.config.train import Kernels as Kernels
from zmar_jax.config.train import Remat as Remat
from zmar_jax.config.train import TrainConfig as TrainConfig
