"""`demo`."""

import importlib.util
from typing import Annotated

from rich.text import Text
from tyro.conf import UseAppendAction, arg

from zmar_jax.cli.console import UsageError, check_devices, err, memory_limit, out, size_of
from zmar_jax.files.places import Place
from zmar_jax.runtime.opening import open_address

INSTALL = "pip install 'zmar-jax[demo]'"


def demo(
    checkpoint: Annotated[UseAppendAction[tuple[Place, ...]], arg(aliases=["-c"])] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    size: UseAppendAction[tuple[str, ...]] = ("400x600", "480x640"),
    memory: str | None = None,
    devices: int = 1,
    upload_mb: int = 64,
    browser: bool = True,
) -> None:
    """Try the model on a page in the browser: drop a photograph, see it before and after.

    The page is only for this machine unless --host says otherwise; it needs no network. One
    picture is restored at a time, one more may wait. What is dropped is forgotten at the end,
    which is Ctrl-C. Needs the extra `demo`: pip install 'zmar-jax[demo]'.

    $ zmar-jax demo

    $ zmar-jax demo -c LOLv2_G.pth -c hf:user/name

    $ zmar-jax demo --host 0.0.0.0 --port 8000 --no-browser

    Args:
      checkpoint: Weights to choose from beside the bundled ones, as often as you like: as for
        restore.
      host: Address to listen at. 0.0.0.0 lets the whole network in; then visitors cannot bring
        weights of their own.
      port: Port to listen at; 0 takes one that is free.
      size: Of pictures, HEIGHTxWIDTH, that are compiled for before the page is up, as often as you
        like; the first picture of any other size waits for XLA.
      memory: What a picture may take on each device, as 16GiB; by default what is free.
      devices: How many devices share the rows of a picture.
      upload_mb: How large the file of a picture may be.
      browser: Open the page.
    """
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(f"demo needs the package {' and '.join(missing)}: {INSTALL}")
    sizes = [size_of(text) for text in size]
    limit = memory_limit(memory)
    if not 1 <= upload_mb <= 100_000:
        raise UsageError(f"--upload-mb must be 1 to 100000, got {upload_mb}")
    from zmar_jax.demo.server import LOCAL, address, listen, serve
    from zmar_jax.demo.studio import Shelf, Studio
    from zmar_jax.restore import load_restorer
    from zmar_jax.runtime import compilation
    from zmar_jax.runtime.stop import stop_if_asked

    check_devices(devices)
    listening = listen(host, port)
    compilation.enable_cache()
    shelf = Shelf([str(where) for where in checkpoint], free=host in LOCAL)
    studio = Studio(shelf, lambda place: load_restorer(place, limit, devices))
    with err.status("compiling") as status:
        for height, width in sizes:
            stop_if_asked()
            status.update(f"compiling for {width}x{height} pixels; later starts are faster")
            studio.warm_up((height, width))
    url = address(listening)

    def ready() -> None:
        out.print(Text("the page is at ").append(url, style=f"link {url}"))
        err.print("Ctrl-C ends it")
        if browser and not open_address(url):
            err.print(f"nothing here opens browsers; open {url} yourself")

    serve(listening, studio, upload_mb, ready)
