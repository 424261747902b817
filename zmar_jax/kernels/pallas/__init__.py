"""Passes of the encoder as TPU kernels, written in Pallas.

`ffn` is the feed-forward pass: begin there. `forward` and `backward` are its kernels, and `parts`
what kernels over the rows of a picture are made of. Where a TPU takes them says `train.kernels`.

Imports: nothing else of this project.
"""
