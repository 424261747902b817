"""What surrounds the training loop: checkpoints, logs, and stopping in time."""
