"""`python convert_torch_weights.py IN OUT` is `zmar-jax convert IN OUT`."""

import sys

from zmar_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
