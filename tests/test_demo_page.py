"""The demo's page in Chromium: drop, slide, zoom, paint, cancel, break."""

import importlib.util
import time
from collections.abc import Iterator

import numpy as np
import pytest

if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "selenium")):
    pytest.skip("needs pip install 'zmar-jax[dev]'", allow_module_level=True)

import golden
from demo_visitor import SIZE, Held, Page, photo, served
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains

from zmar_jax import torch_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio() -> Held:
    return Held()


@pytest.fixture
def page(studio, tmp_path, browser) -> Iterator[Page]:
    with served(studio, tmp_path) as url:
        yield Page(browser, url)
        studio.free.set()
        browser.get("about:blank")  # which closes what the server would wait for


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
    page.driver.set_window_size(1280, 1200)  # in which all controls are seen
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


def test_weights_of_the_hub(page, the_hub, tmp_path):
    weights = tmp_path / "G.safetensors"
    torch_port.write_safetensors(weights, golden.state_dict("tiny", 0))
    the_hub.repos["user/mine"] = {"model.safetensors": weights.read_bytes()}
    page.drop(("a.png", photo()))
    page.restored()
    page.set("#hub", "hf:user/mine")
    page.again()
    assert page.text("#said").startswith("restored in")
    assert any(asked.startswith("GET /user/mine/resolve/") for asked in the_hub.asked)
    page.set("#hub", "hf:user/other")
    page.find("#go").click()
    page.until(lambda: page.shown("#error"))
    assert page.text("#error").startswith("hf:user/other: no such repository")
