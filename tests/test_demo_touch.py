"""The demo's page in Chromium as a phone: fingers slide, pinch, move and paint."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "selenium")):
    pytest.skip("needs pip install 'zmar-jax[dev]'", allow_module_level=True)

import numpy as np
from demo_visitor import SIZE, Page, photo, served

from zmar_jax.demo.jobs import Job
from zmar_jax.demo.studio import Result, Shelf, Studio
from zmar_jax.imaging.images import Photo, write_photo

pytestmark = pytest.mark.slow


class Quick(Studio):
    """A studio without a model: all becomes light, and nothing is lost."""

    def work(self, job: Job) -> Result:
        light, lost = job.picture.folder / "light.png", job.picture.folder / "lost.png"
        write_photo(light, Photo(np.full((*SIZE, 3), 200, np.uint8)))
        write_photo(lost, Photo(np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)))
        return Result(light, lost, 0.0, None, 0.0)


class Phone(Page):
    """A page under fingers."""

    def __init__(self, driver: Any, url: str):
        size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        super().__init__(driver, url)

    def stage(self) -> tuple[float, float, float, float]:
        """Its left, top, width and height in the window."""
        box = self.js("return document.querySelector('#stage').getBoundingClientRect().toJSON()")
        return box["x"], box["y"], box["width"], box["height"]

    def fingers(self, *paths: list[tuple[float, float]]) -> None:
        """Fingers go down one after the other, along their points together, and up."""
        left, top, width, height = self.stage()

        def send(kind: str, points: list[tuple[float, float]]) -> None:
            at = [
                {"x": left + x * width, "y": top + y * height, "id": i}
                for i, (x, y) in enumerate(points)
            ]
            command = {"type": kind, "touchPoints": at}
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", command)

        for count in range(1, len(paths) + 1):
            send("touchStart", [path[0] for path in paths[:count]])
        for points in zip(*paths, strict=True):
            send("touchMove", list(points))
        send("touchEnd", [])

    def along(self, *ends: tuple[float, float], steps: int = 8) -> list[tuple[float, float]]:
        (x0, y0), (x1, y1) = ends
        shares = [i / steps for i in range(steps + 1)]
        return [(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share) for share in shares]


@pytest.fixture
def phone(tmp_path, browser) -> Iterator[Phone]:
    with served(Quick(Shelf()), tmp_path) as url:
        yield Phone(browser, url)
        browser.get("about:blank")


def test_fingers_slide_pinch_and_paint(phone):
    phone.drop(("a.png", photo()))
    phone.restored()
    assert phone.js("return document.documentElement.scrollWidth <= window.innerWidth")
    phone.js("document.querySelector('#stage').scrollIntoView({block: 'start'})")

    phone.fingers(phone.along((0.5, 0.5), (0.2, 0.5)))
    assert float(phone.find("#slide").get_attribute("value")) == pytest.approx(20, abs=2)

    def scale() -> int:
        return int(phone.text("#scale")[:-2])

    def painted() -> int:
        """Pixels of the mask that are painted."""
        return phone.js(
            "const c = document.querySelector('#over canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 127; return n"
        )

    fit, found = scale(), painted()
    apart = phone.along((0.45, 0.5), (0.2, 0.5)), phone.along((0.55, 0.5), (0.8, 0.5))
    phone.fingers(*apart)
    assert scale() == pytest.approx(6 * fit, rel=0.1)  # a tenth of the stage became six
    assert float(phone.find("#slide").get_attribute("value")) == pytest.approx(45, abs=2)
    moved = phone.find("#after").get_attribute("style")
    phone.fingers(phone.along((0.7, 0.5), (0.8, 0.6)))  # beside the line, which slides
    assert phone.find("#after").get_attribute("style") != moved
    phone.fingers(*([*reversed(path)] for path in apart))
    assert scale() == fit

    phone.js("document.querySelector('[value=paint]').click()")
    phone.js("document.querySelector('#stage').scrollIntoView({block: 'start'})")
    phone.fingers(*apart)  # two fingers zoom, and paint nothing
    assert (scale() > 5 * fit, painted()) == (True, found)
    phone.find("#fit").click()
    phone.fingers(phone.along((0.3, 0.5), (0.7, 0.5)))
    assert painted() > found + 50
    assert phone.text("#maskNote") == "What is painted counts as lost."
    told = phone.driver.get_log("browser")
    assert not [line for line in told if line["level"] == "SEVERE"]


def test_the_page_scrolls_under_a_finger_unless_that_moves_or_paints(phone):
    phone.drop(("a.png", photo()))
    phone.restored()

    def touch() -> str:
        return phone.find("#stage").value_of_css_property("touch-action")

    assert touch() == "pan-y"
    phone.find("#in").click()
    assert touch() == "none"
    phone.find("#fit").click()
    assert touch() == "pan-y"
    phone.js("document.querySelector('[value=paint]').click()")
    assert touch() == "none"
