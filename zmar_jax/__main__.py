"""`python -m zmar_jax` is `zmar-jax`."""

import sys

from zmar_jax.cli import main

sys.exit(main())
