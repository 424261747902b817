"""A restorer as one file: compiled to StableHLO here, run where only JAX is.

`loading` needs nothing but JAX, NumPy, flatbuffers and, for models with a brightness, OpenCV.

Imports: config, files, flow, imaging, models, restore, runtime, torch_port, weights.
"""
