"""What the project's programs take: timed here, counted, or compiled for devices not there.

Imports: config, data, files, imaging, models, restore, runtime, torch_port, train, weights.
"""
