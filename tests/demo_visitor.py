"""The demo's server in a thread, and what a visitor does with its page in Chromium."""

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import uvicorn
from PIL import Image

from zmar_jax.config import PRESETS
from zmar_jax.demo.app import Demo, make_app
from zmar_jax.demo.server import address, listen
from zmar_jax.demo.studio import Shelf, Studio
from zmar_jax.restore import Restorer, load_restorer

SIZE = (96, 144)


class Held(Studio):
    """A studio whose sampling waits where the test holds it."""

    def __init__(self):
        restorer = Restorer(PRESETS["tiny"], golden.params("tiny", 0))
        super().__init__(
            Shelf(), lambda place: restorer if place == "bundled" else load_restorer(place)
        )
        self.free = threading.Event()
        self.free.set()

    def work(self, job):
        tell = job.tell

        def held(stage, expected=None):
            assert self.free.wait(60)
            tell(stage, expected)

        job.tell = held
        return super().work(job)


@contextlib.contextmanager
def served(studio: Studio, folder: Path) -> Iterator[str]:
    """The address of a server in a thread."""
    with listen("127.0.0.1", 0) as listening:
        app = make_app(Demo(folder, studio, upload_mb=1), ["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield address(listening)
        server.should_exit = True
        thread.join()


class Page:
    """What a visitor does with a page, and sees."""

    def __init__(self, driver: Any, url: str):
        self.driver, self.js = driver, driver.execute_script
        driver.get(url)
        self.until(lambda: self.js("return document.body.dataset.ready === 'yes'"))

    def find(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def until(self, true: Any) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.05)

    def text(self, css: str) -> str:
        return self.find(css).text

    def shown(self, css: str) -> bool:
        return self.find(css).is_displayed()

    def drop(self, *files: tuple[str, bytes]) -> None:
        """As if files were dragged from the desktop."""
        parts = [[name, base64.b64encode(data).decode()] for name, data in files]
        self.js(
            """const data = new DataTransfer();
            for (const [name, text] of arguments[0])
              data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
            const options = {bubbles: true, cancelable: true, dataTransfer: data};
            for (const kind of ["dragover", "drop"])
              document.body.dispatchEvent(new DragEvent(kind, options));""",
            parts,
        )

    def restored(self) -> None:
        self.until(lambda: self.text("#said").startswith("restored in"))

    def again(self) -> None:
        """Restores, and waits for the new result."""
        before = self.find("#after img").get_attribute("src")
        self.find("#go").click()
        self.until(lambda: self.find("#after img").get_attribute("src") not in (before, None, ""))
        self.until(lambda: not self.shown("#busy"))

    def set(self, css: str, value: object) -> None:
        self.js(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.find(css),
            value,
        )


def photo(kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(1)
    data = io.BytesIO()
    Image.fromarray(rng.integers(1, 60, (*SIZE, 3), np.uint8)).save(data, kind)
    return data.getvalue()
