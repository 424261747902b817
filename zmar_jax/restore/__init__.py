"""Restoring pictures: the restorer, its compiled programs, and the memory that they take.

Imports: config, data, files, flow, imaging, models, ops, runtime, tiling, torch_port, weights.
"""

from zmar_jax.restore.files import Options as Options
from zmar_jax.restore.files import restore_file as restore_file
from zmar_jax.restore.files import restore_files as restore_files
from zmar_jax.restore.restorer import Mask as Mask
from zmar_jax.restore.restorer import Restorer as Restorer
from zmar_jax.restore.restorer import load_restorer as load_restorer
