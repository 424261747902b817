"""The demo's page in Chromium: drop, slide, zoom, paint, cancel, break."""

import base64
import contextlib
import importlib.util
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "selenium")):
    pytest.skip("needs pip install 'zmar-jax[dev]'", allow_module_level=True)

import golden
import uvicorn
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains

from zmar_jax.config import PRESETS
from zmar_jax.demo.app import Demo, make_app
from zmar_jax.demo.server import address, listen
from zmar_jax.demo.studio import Shelf, Studio
from zmar_jax.restore import Restorer

pytestmark = pytest.mark.slow
SIZE = (96, 144)


class Held(Studio):
    """A studio whose sampling waits where the test holds it."""

    def __init__(self):
        restorer = Restorer(PRESETS["tiny"], golden.params("tiny", 0))
        super().__init__(Shelf(), lambda place: restorer)
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


@pytest.fixture(scope="module")
def studio() -> Held:
    return Held()


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


@pytest.fixture
def page(studio, tmp_path, browser) -> Iterator[Page]:
    with served(studio, tmp_path) as url:
        yield Page(browser, url)
        studio.free.set()
        browser.get("about:blank")  # which closes what the server would wait for


def photo(kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(1)
    data = io.BytesIO()
    Image.fromarray(rng.integers(1, 60, (*SIZE, 3), np.uint8)).save(data, kind)
    return data.getvalue()


def test_drop_slide_zoom_and_download(page):
    assert page.shown("#drop")
    page.drop(("my night.jpg", photo("JPEG")))
    page.restored()
    assert not page.shown("#drop")
    assert page.text("#name") == f"my night.jpg · {SIZE[1]}\u00d7{SIZE[0]}"
    assert page.find("#download").get_attribute("download") == "my night.png"
    pictures = ["#before img", "#after img"]
    wide = [page.js("return arguments[0].naturalWidth", page.find(css)) for css in pictures]
    assert wide == [SIZE[1], SIZE[1]]

    def clip() -> str:
        return page.find(".clip").value_of_css_property("clip-path")

    assert "50%" in clip()
    page.find("#slide").send_keys("\ue014" * 20)  # arrow to the right
    assert "40%" in clip()
    stage = page.find("#stage")
    width = stage.size["width"]
    drag = ActionChains(page.driver).move_to_element_with_offset(stage, int(-width / 4), 60)
    drag.click_and_hold().move_by_offset(-int(width / 8), 0).release().perform()
    assert 0.11 < float(page.find("#slide").get_attribute("value")) / 100 < 0.14

    before = page.text("#scale")
    page.find("#in").click()
    assert int(page.text("#scale")[:-2]) == pytest.approx(1.5 * int(before[:-2]), abs=2)
    transform = page.find("#after").get_attribute("style")
    ActionChains(page.driver).drag_and_drop_by_offset(stage, 30, 20).perform()
    assert page.find("#after").get_attribute("style") != transform  # it is moved, and not slid
    assert page.find("#before").get_attribute("style") == page.find("#after").get_attribute("style")
    page.find("#fit").click()
    assert page.text("#scale") == before
    page.driver.set_window_size(390, 800)
    assert page.js("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.driver.get_log("browser") == []


def test_samples_and_their_spread(page):
    page.drop(("a.png", photo()))
    page.restored()
    assert not page.find("#spread").is_enabled()
    page.set("#heat", 0.5)
    assert page.find("#samples").get_attribute("value") == "4"
    page.again()
    page.find("#spread").click()
    assert page.shown("#after .spread")
    assert page.js("return arguments[0].naturalWidth", page.find("#after .spread")) == SIZE[1]
    assert page.text("#legend").endswith("of 255")


def test_paint_a_mask(page, tmp_path):
    page.drop(("a.png", photo()))
    page.restored()
    page.find("[value=paint] + span").click()
    stage = page.find("#stage")
    drag = ActionChains(page.driver).move_to_element_with_offset(stage, -100, 0)
    drag.click_and_hold().move_by_offset(200, 0).release().perform()
    assert page.find("#lost").is_selected()
    assert page.text("#maskNote") == "What is painted counts as lost."
    page.again()
    share = float(page.text("#lostShare")[:-2])
    assert 0.2 < share < 30
    (mask,) = tmp_path.rglob("mask.png")
    lost = np.asarray(Image.open(mask).convert("L")) > 0
    assert 100 * lost.mean() == pytest.approx(share, abs=0.06)
    assert lost[SIZE[0] // 2, SIZE[1] // 2]
    assert not lost[0].any()
    page.find("#none").click()
    page.again()
    assert page.text("#lostShare") == "0.0 %"


def test_cancel(page, studio):
    studio.free.clear()
    page.drop(("a.png", photo()))
    page.until(lambda: page.shown("#cancel"))
    page.find("#cancel").click()
    page.until(lambda: page.text("#stageText") == "ending after this step")
    studio.free.set()
    page.until(lambda: page.text("#said") == "cancelled")
    assert not page.shown("#busy")
    page.find("#go").click()
    page.restored()


def test_what_goes_wrong_is_said_and_the_server_lives(page):
    def error(says: str) -> None:
        page.until(lambda: page.shown("#error") and says in page.text("#error"))
        assert not page.shown("#busy")

    page.drop(("broken.jpg", photo("JPEG")[:500]))
    error("broken.jpg: cannot be read")
    page.drop(("huge.png", bytes(1_100_000)))
    error("huge.png: 2 MB, and 1 MB are allowed")
    page.drop(*[(f"{i}.png", photo()) for i in range(5)])
    error("one picture at a time, please: these are 5 files")
    page.find("#error button").click()
    assert not page.shown("#error")
    page.drop(("a.png", photo()))
    page.restored()
    page.set("#hub", "hf:nobody")
    page.find("#go").click()
    error("hf:nobody: expected hf:USER/NAME")
    page.set("#hub", "")
    page.again()
    assert not page.shown("#error")


def test_many_visitors_at_once(page, studio):
    studio.free.clear()
    url = page.driver.current_url
    page.drop(("a.png", photo()))
    page.until(lambda: page.shown("#cancel"))
    for _ in range(2):
        page.driver.switch_to.new_window("tab")
        Page(page.driver, url)
        page.drop(("b.png", photo()))
        page.until(lambda: page.shown("#busy") or page.shown("#error"))
    page.until(lambda: page.shown("#error"))
    assert "one runs, one waits" in page.text("#error")
    studio.free.set()

    def accepted() -> bool:
        if not page.shown("#busy"):
            page.find("#go").click()
            time.sleep(0.5)
        return page.text("#said").startswith("restored in")

    page.until(accepted)
