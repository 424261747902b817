"""`zmar-jax train`, compiled with few passes, for chaos.py: small models compile for longer than
they run."""

import sys

from zmar_jax.cli import main
from zmar_jax.runtime import restarts

if "--restarts" not in sys.argv or restarts.is_child():
    from zmar_jax.runtime import compilation

    compilation.LLVM_LEVEL = 0
restarts.this_command = lambda: [sys.executable, *sys.argv]
sys.exit(main(["train", *sys.argv[1:]]))
