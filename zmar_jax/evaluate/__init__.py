"""Evaluating weights on pairs of pictures, or on dark pictures alone.

Imports: config, data, files, flow, imaging, models, ops, restore, runtime, torch_port, weights.
"""
