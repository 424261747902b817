"""What a run was made with: versions, commit, machines and devices, mesh, configuration."""

import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from zmar_jax.config import Config, to_dict
from zmar_jax.files.places import Place
from zmar_jax.runtime.processes import gather
from zmar_jax.train.hosts import package_versions

FILE = "run.json"
"""In the workdir, of the last start; every checkpoint has its own, as the item `run`."""


def about(config: Config, mesh: Mesh, workdir: Place) -> dict[str, Any]:
    """All that JSON can hold of how this start of a run computes; all processes must call it."""
    return {
        "workdir": str(workdir.absolute() if isinstance(workdir, Path) else workdir),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": {"Python": platform.python_version(), **package_versions()},
        "commit": commit(),
        "hosts": gather(socket.gethostname()),
        "platform": platform.platform(),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "config": to_dict(config),
    }


def commit() -> str | None:
    """The commit of the clone that this package runs from, "-dirty" where files were changed; None
    where it is installed otherwise, or there is no git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        command = ["git", "-C", str(root), *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
