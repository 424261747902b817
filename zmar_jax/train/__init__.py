"""Training: one step, as a pure function; the loop around it; and what a run leaves on the disk.

Imports: config, data, files, flow, imaging, models, ops, runtime, torch_port, weights.
"""

from zmar_jax.train.loop import TrainingError as TrainingError
from zmar_jax.train.loop import train as train
from zmar_jax.train.step import compile_steps as compile_steps
from zmar_jax.train.step import health as health
from zmar_jax.train.step import init_step as init_step
from zmar_jax.train.step import train_step as train_step
