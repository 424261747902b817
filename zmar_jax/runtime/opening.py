"""Showing a file or a folder to who sits at this machine, in the program that is made for it."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path


def opener() -> list[str] | None:
    """The command that opens a path, without the path; None where nobody would see it."""
    if sys.platform == "darwin":
        return ["open"]
    seen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    wsl = shutil.which("wslview")
    if wsl:
        return [wsl]
    found = shutil.which("xdg-open")
    return [found] if found and seen else None


def open_path(path: Path) -> bool:
    """Opens a file or a folder and does not wait for it; whether there was something to open it."""
    return open_address(str(path.absolute()))


def open_address(address: str) -> bool:
    """Opens a path or a URL as `open_path` does."""
    command = opener()
    if command is None:
        return False
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, address],
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,  # Ctrl-C here is not meant for it
    )
    threading.Thread(target=process.wait, daemon=True).start()
    return True
