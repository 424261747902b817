"""report.html: one file, safe against any name, and what it does in a browser."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zmar_jax.evaluate import report
from zmar_jax.evaluate.evaluation import summarize
from zmar_jax.evaluate.measures import zero_pixels
from zmar_jax.evaluate.pairs import Pairs
from zmar_jax.evaluate.records import Records

NAMES = ("</script><script>alert(1)</script>", 'b "quoted" & <i>\'é\u2028日本', "deep/c 10", "c 9")
SETTINGS = {
    **{"data": "</title>lol_v1", "kind": "pairs", "masks": "none", "weights": "0", "seed": 0},
    **{"protocol": "zmar", "gt_mean": False, "heat": 0.5, "samples": 4, "views": 1},
}
PSNR = (21.5, None, 9.25, 30.0)


def pair(i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(i)
    gt = np.repeat(np.repeat(rng.integers(1, 256, (12, 18, 3), np.uint8), 5, 0), 5, 1)
    low = gt // 4 + 1
    low[: 10 + 10 * i, :45] = 0
    return low, gt


def write(folder: Path, deviating: bool = True, count: int = len(NAMES)) -> Path:
    records, found = Records(folder, SETTINGS), []
    names = [NAMES[i] if i < len(NAMES) else f"more {i}" for i in range(count)]
    for i, name in enumerate(names):
        low, gt = pair(i % 4)
        values = dict.fromkeys(("ssim", "bits_per_dim", "psnr_input", "ssim_input"), 0.5 + i)
        values |= {"psnr": PSNR[i % 4], "lost_share": zero_pixels(low).mean(), "seconds": 1.0}
        std = np.full(gt.shape[:2], 3.0 + i) if deviating else None
        found.append(records.add(name, "", gt // 2 + 60, std, values))
    sizes = ((60, 90),) * count
    pairs = Pairs("lol", "pairs", tuple(names), sizes, ("",) * count, lambda i: pair(i % 4))
    return report.write_report(summarize(SETTINGS, found), pairs, folder)


def test_it_is_one_file_whose_data_no_name_can_end(tmp_path):
    text = write(tmp_path).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<title>Evaluation on &lt;/title&gt;lol_v1</title>" in text
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", text)) - {"http://www.w3.org"}
    # of base64
    assert not [address for address in addresses if address.startswith("http")]
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # pyright: ignore
    assert [image["id"] for image in data["images"]] == list(NAMES)
    assert [image["psnr"] for image in data["images"]] == list(PSNR)
    for i, image in enumerate(data["images"]):
        pictures = {name: decoded(uri) for name, uri in image["pictures"].items()}
        assert set(pictures) == {"input", "restored", "gt", "lost", "uncertainty"}
        assert {picture.size for picture in pictures.values()} == {(90, 60)}
        low, gt = pair(i)
        grey = np.asarray(Image.fromarray(gt).convert("L"), float)
        assert np.abs(np.asarray(pictures["gt"].convert("L")) - grey).mean() < 6
        overlay = np.asarray(pictures["lost"].convert("RGBA"))[..., 3] > 0
        assert np.array_equal(overlay, zero_pixels(low))


def decoded(uri: str) -> Image.Image:
    assert uri.startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_without_samples_there_is_no_uncertainty(tmp_path):
    text = write(tmp_path, deviating=False).read_text(encoding="utf-8")
    assert '"uncertainty": "data:' not in text
    assert '"deviation": null' in text


def test_more_than_100_pictures_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SIDE", 80)
    monkeypatch.setattr(report, "LEAST_SIDE", 20)
    monkeypatch.setattr(report, "PICTURES", 1)
    text = write(tmp_path).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # pyright: ignore
    assert decoded(data["images"][0]["pictures"]["input"]).size == (40, 27)


def test_without_ground_truth_none_is_shown(tmp_path):
    data = json.loads(
        re.search(r'id="data">(.*?)</script>', write_dark(tmp_path).read_text(), re.S)[1]  # pyright: ignore
    )
    assert set(data["images"][0]["pictures"]) == {"input", "restored", "lost"}
    keys = [column["key"] for column in data["columns"]]
    assert keys[:3] == ["id", "niqe", "brightness"]
    assert {data["plot"]["x"], data["plot"]["y"]} <= set(keys)


def write_dark(folder: Path) -> Path:
    settings = {key: SETTINGS[key] for key in SETTINGS if key not in ("protocol", "gt_mean")}
    settings |= {"data": "night", "kind": "dark"}
    low, restored = pair(0)
    keys = ("niqe", "brightness", "niqe_input", "brightness_input", "lost_share", "seconds")
    values = dict.fromkeys(keys, 5.5)
    found = [Records(folder, settings).add(name, "", restored, None, values) for name in "ab"]
    pairs = Pairs("night", "dark", ("a", "b"), ((60, 90),) * 2, ("",) * 2, lambda i: (low, None))
    return report.write_report(summarize(settings, found), pairs, folder)


@pytest.mark.slow
def test_in_chromium_it_loads_sorts_and_slides(browser, tmp_path):
    browser.get(write(tmp_path).as_uri())
    find, js = lambda css: browser.find_elements("css selector", css), browser.execute_script
    assert [link.get_attribute("textContent") for link in find("#images td a")] == list(NAMES)
    assert len(find("#scatter circle")) == 3
    assert len(find("#cards article")) == 4

    def order():
        rows = [link.get_attribute("href")[-1] for link in find("#images td a")]
        cards = [card.get_attribute("id")[-1] for card in find("#cards article")]
        assert rows == cards
        return "".join(rows)

    by_name, by_psnr = find("#images th button")[:2]
    by_psnr.click()
    assert order() == "2031"  # what is not finite comes last
    assert find("#images th")[1].get_attribute("aria-sort") == "ascending"
    by_psnr.send_keys("\ue007")  # the enter key
    assert order() == "3021"
    assert find("#images th")[1].get_attribute("aria-sort") == "descending"
    by_name.click()
    assert order() == "0132"
    assert find("#images th")[1].get_attribute("aria-sort") is None

    card = find("#cards article")[0]
    slider, left = (card.find_element("css selector", css) for css in ("input", ".left"))

    def clip():
        return left.value_of_css_property("clip-path")

    js("arguments[0].scrollIntoView()", card)
    assert "50%" in clip()
    slider.send_keys("\ue014" * 20)  # arrow to the right
    assert slider.get_attribute("value") == "60"
    assert "40%" in clip()
    drag = "arguments[0].dispatchEvent(new PointerEvent('pointermove', {buttons: 1, clientX: 0}))"
    js(drag, card.find_element("css selector", ".stage"))
    assert slider.get_attribute("value") == "0"

    pictures = card.find_elements("css selector", ".restored, .left")
    assert [js("return arguments[0].naturalWidth", picture) for picture in pictures] == [90, 90]
    before = left.get_attribute("src")
    find("#view input[value=gt]")[0].click()
    assert left.get_attribute("src") != before
    for name in ("lost", "uncertainty"):
        image = card.find_element("css selector", f".{name}")
        assert not image.is_displayed()
        find(f"#view input[name={name}]")[0].click()
        assert image.is_displayed()
        assert image.get_attribute("src").startswith("data:image/")
    assert find("#truth")[0].is_displayed()
    assert find("#scatter circle title")[0].get_attribute("textContent").endswith("zero, % 8.3")
    browser.set_window_size(390, 800)
    assert js("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_in_chromium_a_report_without_ground_truth_loads(browser, tmp_path):
    browser.get(write_dark(tmp_path).as_uri())

    def find(css):
        return browser.find_elements("css selector", css)

    assert find("#plotted")[0].text == "Brightness after against before"
    assert len(find("#scatter circle")) == 2
    assert not find("#truth")[0].is_displayed()
    assert [cell.text for cell in find("#images tbody tr")[0].find_elements("css selector", "td")][
        1:3
    ] == ["5.50", "5.5"]
    assert browser.get_log("browser") == []
