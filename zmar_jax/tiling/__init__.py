"""An image in stripes of rows, and its rows over devices.

Imports: kernels, ops.
"""
