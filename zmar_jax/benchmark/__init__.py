"""Timings of the project's programs on the machine at hand."""
