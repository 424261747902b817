"""The demo's server: pictures in, jobs, results out, and everything that a visitor gets wrong."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "httpx")):
    pytest.skip("needs pip install 'zmar-jax[dev]'", allow_module_level=True)

import golden
import httpx
from starlette.testclient import TestClient

from zmar_jax.config import PRESETS
from zmar_jax.demo.app import Demo, make_app
from zmar_jax.demo.errors import DemoError
from zmar_jax.demo.jobs import BROKEN, Cancelled, Job, Jobs
from zmar_jax.demo.pictures import KEPT, Picture, Pictures, safe_name
from zmar_jax.demo.server import address, listen
from zmar_jax.demo.studio import Result, Shelf, Studio, spread_map
from zmar_jax.demo.wishes import Wish, wish
from zmar_jax.imaging.exposure import as_seen
from zmar_jax.imaging.images import Photo, write_photo
from zmar_jax.restore import Restorer
from zmar_jax.restore.restorer import Stage
from zmar_jax.runtime.memory import MemoryLimitError

PICTURE = Picture("id", "night.JPG", Path("folder"), 40, 48)


def png(height: int = 40, width: int = 48, value: int | None = None) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 40, (height, width, 3), np.uint8)
    if value is not None:
        pixels[:] = value
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


class Hand(Studio):
    """A studio whose work the test lets go on, and end as it wants."""

    def __init__(self, free: bool = True):
        super().__init__(Shelf(["other"], free))
        self.go, self.error = threading.Event(), None

    def work(self, job: Job) -> Result:
        job.tell("looking at the picture", 100.0)
        assert self.go.wait(20)
        job.tell("writing the result")
        if self.error:
            raise self.error
        target = job.picture.folder / "restored.png"
        write_photo(target, Photo(np.full((40, 48, 3), 200, np.uint8)))
        return Result(target, target, 0.25, None, 0.0)


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def client(tmp_path: Path, hand: Hand) -> Iterator[Any]:
    app = make_app(Demo(tmp_path, hand, upload_mb=1), ["testserver"])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
        hand.go.set()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def add(client: Any, name: str = "night.jpg", data: bytes | None = None) -> dict[str, Any]:
    answer = client.post("/api/pictures", params={"name": name}, content=data or png())
    assert answer.status_code == 201, answer.text
    return answer.json()


def start(client: Any, picture: dict[str, Any], **form: Any) -> Any:
    return client.post(f"/api/pictures/{picture['id']}/jobs", json=form)


def ended(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}

    def done() -> bool:
        told.update(client.get(f"/api/jobs/{job['id']}").json())
        return told["state"] not in ("waiting", "running")

    until(done)
    return told


def test_a_picture_comes_back_under_its_name(client, hand):
    picture = add(client, "my night.jpg")
    assert (picture["width"], picture["height"]) == (48, 40)
    shown = Image.open(io.BytesIO(client.get(picture["before"]).content))
    assert np.array_equal(shown, Image.open(io.BytesIO(png())))
    job = start(client, picture).json()
    until(lambda: client.get(f"/api/jobs/{job['id']}").json()["stage"] == "looking at the picture")
    assert 0 <= client.get(f"/api/jobs/{job['id']}").json()["share"] < 0.5
    hand.go.set()
    told = ended(client, job)
    assert (told["state"], told["result"]["lost_share"]) == ("done", 0.25)
    got = client.get(told["result"]["restored"], params={"download": ""})
    assert "my%20night.png" in got.headers["content-disposition"]
    assert np.asarray(Image.open(io.BytesIO(got.content))).min() == 200
    assert client.get(f"/api/jobs/{job['id']}/spread").status_code == 404


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/page.js", "/page/view.js", "/page/page.css"):
        text = client.get(path).text
        assert len(text) > 1000
        assert "//cdn" not in text
        assert "http" not in text
    assert client.get("/page/../app.py").status_code == 404
    about = client.get("/api/about").json()
    assert about["weights"] == ["bundled", "other"]
    assert about["upload_mb"] == 1


def test_one_runs_one_waits_and_others_are_told(client, hand):
    picture = add(client)
    first = start(client, picture).json()
    until(lambda: client.get(f"/api/jobs/{first['id']}").json()["state"] == "running")
    second = start(client, picture).json()
    refused = start(client, picture)
    assert refused.status_code == 503
    assert "one runs, one waits" in refused.json()["message"]
    assert client.delete(f"/api/jobs/{second['id']}").json()["state"] == "cancelled"
    third = start(client, picture).json()  # in its place
    assert client.delete(f"/api/jobs/{first['id']}").json()["cancelling"]
    hand.go.set()
    assert ended(client, first)["state"] == "cancelled"
    assert ended(client, third)["state"] == "done"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryLimitError("9000x9000 pixels need\n9 GiB"), "9000x9000 pixels need 9 GiB"),
        (MemoryError(), "MemoryError"),
        (KeyError("a mistake"), BROKEN),
    ],
)
def test_work_that_fails_is_told_and_the_next_goes_on(client, hand, error, message):
    picture, hand.error = add(client), error
    hand.go.set()
    told = ended(client, start(client, picture).json())
    assert (told["state"], told["message"]) == ("failed", message)
    hand.error = None
    assert ended(client, start(client, picture).json())["state"] == "done"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.png", b"no picture", "a.png: cannot be read"),
        ("a.png", png()[:200], "a.png: cannot be read"),
        ("../../x.dng", b"raw", "x.dng: "),
        ("a.png", b"", "a.png: cannot be read (the file is empty)"),
        ("big.png", bytes(1_000_001), "big.png: more than 1 MB"),
    ],
)
def test_what_is_no_picture_is_refused_and_leaves_nothing(client, tmp_path, name, data, says):
    answer = client.post("/api/pictures", params={"name": name}, content=data)
    assert answer.status_code in (413, 422)
    assert answer.json()["message"].startswith(says)
    assert str(tmp_path) not in answer.text
    assert list((tmp_path / "pictures").iterdir()) == []
    add(client)


def test_a_stream_without_a_length_is_cut_off(client, tmp_path):
    parts = (bytes(300_000) for _ in range(50))
    assert client.post("/api/pictures?name=a.png", content=parts).status_code == 413
    assert list((tmp_path / "pictures").iterdir()) == []


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ([], "expected a JSON object"),
        ({"heat": -1}, "heat must be a number from 0 to 2, got -1"),
        ({"heat": True}, "heat must"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"samples": 65, "heat": 1}, "samples must be a whole number from 1 to 64"),
        ({"samples": 2}, "samples above 1 need a heat"),
        ({"mask": "/etc/passwd"}, "mask must be one of"),
        ({"views": 3}, "views must be one of auto, 1, 2, 4, 8, got 3"),
        ({"views": True}, "views must"),
        ({"weights": "/etc/passwd"}, "/etc/passwd: no such weights here"),
        ({"weights": "hf:nobody"}, "hf:nobody: expected hf:USER/NAME"),
        ({"weight": ""}, "unknown field 'weight'"),
        ({"brightness": 1e400}, "brightness must"),
    ],
)
def test_wishes_that_cannot_be_are_refused(client, form, says):
    answer = client.post(f"/api/pictures/{add(client)['id']}/jobs", content=json.dumps(form))
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["message"].startswith(says)


def test_a_wish_has_the_defaults_of_restore():
    assert wish({}) == Wish("bundled", 1.0, 0.0, 1, 0, "auto")
    assert wish({"heat": 0.5, "samples": 8.0}).samples == 8


def test_masks_must_fit(client):
    path = f"/api/pictures/{add(client)['id']}/mask"
    half = np.zeros((40, 48), np.uint8)
    half[:10] = 255
    data = io.BytesIO()
    Image.fromarray(half).save(data, "PNG")
    assert client.put(path, content=data.getvalue()).json() == {"share": 0.25}
    assert client.put(path, content=png(8, 8, 0)).json()["message"].startswith("a mask of 8x8 for")
    for content in (b"?", png(value=255)):
        assert client.put(path, content=content).json()["message"].startswith("the painted mask: ")


def test_only_its_own_page_may_ask(client):
    assert client.post("/api/sample", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    ours = {"Origin": "http://testserver"}
    assert client.post("/api/sample", headers=ours).status_code == 201


def test_weights_of_visitors(client, hand, tmp_path):
    assert client.post("/api/weights?name=a.exe", content=b"x").status_code == 400
    told = client.post("/api/weights?name=../other.pth", content=b"x").json()["name"]
    assert told == "other.pth"
    assert Path(hand.shelf.find(told)).read_bytes() == b"x"
    again = client.post("/api/weights?name=other.pth", content=b"y").json()["name"]
    assert again.endswith("-other.pth")
    hand.shelf.free = False
    assert client.post("/api/weights?name=b.pth", content=b"x").status_code == 403
    assert start(client, add(client), weights="hf:user/name").status_code == 400


def test_only_the_newest_pictures_are_kept(tmp_path):
    pictures, added = Pictures(tmp_path, kept=2), []
    for _ in range(3):
        upload = pictures.place() / "upload"
        upload.write_bytes(png())
        added.append(pictures.add("a.png", upload))
    assert {folder.name for folder in tmp_path.iterdir()} == {p.id for p in added[1:]}
    with pytest.raises(DemoError, match="no longer kept"):
        pictures.get(added[0].id)


def test_a_picture_in_work_is_kept_whoever_comes(client, hand):
    picture = add(client)
    job = start(client, picture).json()
    for _ in range(KEPT + 1):
        add(client)
    assert client.get(picture["before"]).status_code == 200
    hand.go.set()
    assert ended(client, job)["state"] == "done"
    add(client)
    assert client.get(picture["before"]).json()["message"].startswith("this picture is no longer")


def test_names_are_kept_as_far_as_a_file_may_have_them():
    assert safe_name("C:\\a\\IMG.0001.JPG") == "IMG.0001.JPG"
    assert safe_name("/../.hidden") == "hidden"
    assert safe_name('n<i>"ght\n é日.png') == "night é日.png"
    assert safe_name("") == safe_name("..") == "picture"
    assert len(safe_name("x" * 500 + ".tiff")) == 105
    assert PICTURE.download_name == "night.png"


def test_closing_ends_the_job_in_work():
    begun = threading.Event()

    def work(job: Job) -> None:
        begun.set()
        while True:
            job.tell("working")
            time.sleep(0.01)

    jobs = Jobs(work, ())
    job = jobs.submit(PICTURE, Wish())
    assert begun.wait(20)
    jobs.close()
    assert job.state == "cancelled"
    job.asked = True
    with pytest.raises(Cancelled):
        job.tell("more")


def test_the_spread_is_as_bright_as_it_is_large():
    std = np.zeros((20, 20, 3), np.float32)
    std[:, 10:] = 7.5
    colours, scale = spread_map(std)
    assert scale == 7.5
    assert colours[0, 0].sum() < 10
    assert colours[0, 19].sum() > 500


@pytest.fixture(scope="module")
def studio() -> Studio:
    restorer = Restorer(PRESETS["tiny"], golden.params("tiny", 0))
    return Studio(Shelf(), lambda place: restorer)


def job_of(tmp_path: Path, form: Wish) -> Job:
    pictures = Pictures(tmp_path)
    upload = pictures.place() / "upload"
    upload.write_bytes(png())
    return Job(pictures.add("a.png", upload), form)


@pytest.mark.slow
def test_its_work_is_what_restore_does(studio, tmp_path, monkeypatch):
    form = Wish(brightness=1.5, heat=0.5, samples=2, seed=3, mask="painted", views=2)
    job = job_of(tmp_path, form)
    lost = np.zeros((40, 48), bool)
    lost[4:9, 6:20] = True
    write_photo(job.picture.mask, Photo(np.dstack([lost * np.uint8(255)] * 3)))
    stages: list[tuple[str, float | None]] = []
    monkeypatch.setattr(job, "tell", lambda stage, expected=None: stages.append((stage, expected)))
    result = studio.work(job)
    mean, std = studio.restorer("bundled").sample(
        np.asarray(Image.open(io.BytesIO(png()))), 0.5, 3, 2, lost, 1.5, views=2
    )
    assert np.array_equal(np.asarray(Image.open(result.restored)), mean)
    assert result.lost_share == lost.mean()
    assert np.array_equal(np.asarray(Image.open(result.lost))[..., 3] > 0, lost)
    assert result.spread_scale == pytest.approx(np.percentile(std.mean(-1), 99.5), rel=1e-5)
    said = [stage for stage, _ in stages]
    assert said[0] == "reading the weights"
    assert "first compiling for 48x40" in said[2]
    assert said[-2:] == ["view 2 of 2: sample 2 of 2", "writing the result"]
    for _ in range(2):  # the second run is measured, the third knows
        stages.clear()
        studio.work(job)
    assert "compiling" not in " ".join(stage for stage, _ in stages)
    assert all(expected for stage, expected in stages if "sample" in stage)


def test_what_stages_took_tells_how_long_the_next_picture_takes(monkeypatch):
    """Of two views with two samples each, where the encoder takes 10 s and a sample 1 s."""
    clock = [0.0]
    said: list[Any] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow:
        config = PRESETS["tiny"]

        def sample_seen(self, seen, heat, seed, samples, views, tell):
            for stage in (Stage(v, views, i, samples) for v in (1, 2) for i in (0, 1, 2)):
                tell(stage)
                clock[0] += 1.0 if stage.sample else 10.0

    slow: Any = Slow()
    studio, seen = Studio(Shelf()), as_seen(np.zeros((16, 24, 3), np.uint8), 0.0)
    for _ in range(3):  # the first compiles, the second is measured
        said.clear()
        studio._sample(slow, "bundled", seen, lambda *told: said.append(told), 0.5, 0, 2, 2)
    assert [told[1] for told in said] == pytest.approx([24.0] * 6)


def test_its_work_ends_where_it_is_told(studio, tmp_path):
    job = job_of(tmp_path, Wish())
    job.asked = True
    with pytest.raises(Cancelled):
        studio.work(job)


def test_pictures_that_do_not_fit_are_refused_before_they_are_compiled(tmp_path):
    small = Restorer(PRESETS["tiny"], golden.params("tiny", 0), memory=1000)
    with pytest.raises(MemoryLimitError, match="48x40 pixels"):
        Studio(Shelf(), lambda place: small).work(job_of(tmp_path, Wish()))


def test_weights_that_cannot_be_read_are_called_as_the_visitor_called_them(tmp_path):
    shelf = Shelf()
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    name = shelf.add("bad.pth", tmp_path / "bad.pth")
    with pytest.raises(DemoError, match=r"^bad\.pth: "):
        Studio(shelf).restorer(name)


def test_only_some_restorers_are_kept():
    loaded: list[str] = []
    shelf = Shelf(["b", "c"])
    studio = Studio(shelf, lambda place: loaded.append(place) or object())
    for name in ("bundled", "b", "bundled", "c", "bundled", "b"):
        studio.restorer(name)
    assert loaded == ["bundled", "b", "c", "b"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "host"), [(signal.SIGINT, 130, "127.0.0.1"), (signal.SIGTERM, 0, "0.0.0.0")]
)
def test_the_command_serves_until_it_is_ended(tmp_path, end, code, host):
    command = (sys.executable, "-m", "zmar_jax", "demo", "--no-browser", "--port", "0")
    command += ("--host", host)
    env = os.environ | {"TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen((*command, "--size", "40x48"), env=env, **pipes) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, timeout=60) as client:
            assert "zmar-jax demo" in client.get("/").text
            told = ended(client, start(client, add(client)).json())
            assert told["state"] == "done", told
            got = client.get(told["result"]["restored"]).content
            assert Image.open(io.BytesIO(got)).size == (48, 40)
            # to the network the page is open under any name, and takes no weights
            elsewhere = client.get("/", headers={"Host": "night.example"})
            weights = client.post("/api/weights?name=a.pth", content=b"x")
            opened = host == "0.0.0.0"
            assert elsewhere.status_code == (200 if opened else 400)
            assert weights.status_code == (403 if opened else 201)
            assert client.get("/api/about").json()["own_weights"] != opened
        assert list(tmp_path.glob("zmar-jax-demo-*"))
        process.send_signal(end)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (code, False), err
    assert not list(tmp_path.glob("zmar-jax-demo-*"))


def test_a_port_that_is_taken_is_said_in_one_line():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}/"
        with pytest.raises(DemoError, match=f"127.0.0.1:{port}: cannot listen there .*--port"):
            listen("127.0.0.1", port)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    from zmar_jax.cli import demo as command
    from zmar_jax.cli.console import UsageError

    monkeypatch.setattr(sys.modules[command.__module__].importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'zmar-jax\[demo\]'"):
        command(browser=False)
