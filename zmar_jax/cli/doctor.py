"""`doctor`."""

import json
from typing import Annotated

from tyro.conf import arg

from zmar_jax.cli.console import err, out, table_of


def doctor(json_output: Annotated[bool, arg(name="json")] = False) -> int:
    """Check this installation: versions, devices, memory, cache, and a short test of each part.

    Paste what it prints into a bug report. It shows no names of files but the package's and the
    cache's. The exit code is 1 where a check fails.

    $ zmar-jax doctor

    $ zmar-jax doctor --json

    Args:
      json_output: Print JSON instead of a table.
    """
    from zmar_jax.benchmark.doctor import CHECKS, check, facts

    told = facts()
    results = []
    with err.status("checking") as status:
        for name, run in CHECKS.items():
            status.update(f"checking {name}")
            results.append(check(name, run))
    failed = any(not result.passed for result in results)
    if json_output:
        out.print(json.dumps({"facts": told, "checks": [r._asdict() for r in results]}))
        return int(failed)
    table = table_of("zmar-jax doctor")
    for name, value in told.items():
        table.add_row(name, value)
    table.add_section()
    for result in results:
        verdict = "ok" if result.passed else "FAILED"
        table.add_row(f"check: {result.name}", f"{verdict}, {result.seconds:.1f} s  {result.said}")
    out.print(table)
    return int(failed)
