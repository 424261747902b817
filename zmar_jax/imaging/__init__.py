"""Pictures as NumPy arrays: read and written, exposed, scored, and which pixels are lost.

Imports: files.
"""
