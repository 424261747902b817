#!/usr/bin/env bash
# Everything that docs/performance.md would say of a GPU, in one command of at most nine minutes:
# speed and memory beside PyTorch, the share of the chip's peak, a profile, tests on the GPU.
#
#   scripts/measure_gpu.sh                      # writes measured/gpu.json and measured/gpu.md
#   scripts/measure_gpu.sh --out "$OUT"         # elsewhere
#   scripts/measure_gpu.sh --help               # smaller sizes, another device, fewer minutes
#
# Needs Python with PyTorch, pytest and this package's requirements with the extra cuda; $PYTHON
# names one (python3 otherwise). The package itself is taken from this clone. What fails, or finds no
# time any more, is a row of the table that says so, and the exit code is 1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
missing=$("$python" - <<'END'
from importlib.util import find_spec

wanted = ("jax", "flax", "optax", "orbax", "tyro", "rich", "safetensors", "grain", "pytest", "torch")
print(*(name for name in wanted if find_spec(name) is None))
END
)
if [[ -n $missing && $missing != torch ]]; then
  echo "error: $python lacks: $missing; name another one in \$PYTHON, or pip install '.[cuda,test]'" >&2
  exit 1
fi
exec "$python" "$here/scripts/measure_gpu.py" "$@"
