"""Trains as one process of several, or as one with many devices; for test_sharding.py.

python train_worker.py OUT FSDP [COORDINATOR PROCESSES PROCESS]
"""

import sys

import jax
import numpy as np

from zmar_jax.runtime import compilation, sharding


def main(out: str, fsdp: str, *joined: str) -> None:
    if joined:
        sharding.initialize_distributed(joined[0], int(joined[1]), int(joined[2]))
    import training  # makes a key: nothing may use JAX before the processes have joined

    compilation.LLVM_LEVEL = 0
    first, _, losses = training.trained_on(sharding.make_mesh(int(fsdp)), training.config(), 5)
    if jax.process_index() == 0:
        np.savez(out, *jax.tree.leaves(first), losses=losses, devices=jax.device_count())


main(*sys.argv[1:])
