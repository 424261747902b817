"""Evaluating weights on pairs of pictures."""
