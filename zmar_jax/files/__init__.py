"""Files that are written whole, and errors in one line.

Imports: nothing of this project.
"""
