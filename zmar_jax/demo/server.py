"""Starting the page's server: its socket, the first compilation, and the end."""

import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvicorn

from zmar_jax.demo.app import Demo, make_app
from zmar_jax.demo.errors import DemoError
from zmar_jax.demo.studio import Studio
from zmar_jax.runtime.stop import remembered

LOCAL = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket of this address; 0 is a free port. DemoError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as e:
        advice = "choose another --port, or 0 for any that is free"
        reason = getattr(e, "strerror", None) or str(e)
        raise DemoError(f"{host}:{port}: cannot listen there ({reason}); {advice}") from e


def address(listening: socket.socket) -> str:
    """What to open in a browser on this machine."""
    host, port = listening.getsockname()[:2]
    host: str = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(
    listening: socket.socket, studio: Studio, upload_mb: int, ready: Callable[[], None]
) -> None:
    """Serves until Ctrl-C or SIGTERM; what visitors brought is removed at the end.

    Args:
      ready: called once, just before the first request is answered.
    """
    host = listening.getsockname()[0]
    # older versions of Starlette split [::1]:80 at its first colon
    hosts = [*LOCAL, "[::1]", "["] if host in LOCAL else ["*"]
    with tempfile.TemporaryDirectory(prefix="zmar-jax-demo-") as folder, listening:
        app = make_app(Demo(Path(folder), studio, upload_mb), hosts)
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        server = uvicorn.Server(config)
        # uvicorn raises the signal that ended it once more, and the folder is still to be removed
        with remembered(signal.SIGTERM):
            ready()
            server.run(sockets=[listening])
