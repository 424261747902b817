"""What the project's programs take: timed here, counted, or compiled for devices not there.

Imports: config, data, imaging, models, restore, runtime, torch_port, train, weights.
"""
