"""How programs are compiled, meshes of devices, memory, and processes that agree.

Imports: config, files, kernels.
"""
