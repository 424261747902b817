"""URLs: read and written in emulated buckets, also through faults; never the name of a folder."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")
from emulators import Fault, Gate, emulator

from zmar_jax.files import lease
from zmar_jax.files.lease import Lease
from zmar_jax.files.lock import LockedError
from zmar_jax.files.mirror import Mirror, fetched, published
from zmar_jax.files.places import Bucket, PlaceError, _filesystem, local, place

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request, tmp_path_factory) -> Iterator[tuple[str, Gate]]:
    scheme = request.param
    log = tmp_path_factory.mktemp(scheme) / "log"
    with emulator(scheme, log) as (gate, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _filesystem(scheme).clear_instance_cache()
        yield scheme, gate
        _filesystem(scheme).clear_instance_cache()


@pytest.fixture
def here(bucket, request) -> Iterator[tuple[str, Gate]]:
    """A URL of the test's own, and the gate, without faults."""
    scheme, gate = bucket
    yield f"{scheme}://bucket/{request.node.originalname}", gate
    gate.faults.clear()


def test_an_object_is_created_once(here) -> None:
    url, _ = here
    files = Bucket(url)
    assert files.create("a/one", b"first")
    assert not files.create("a/one", b"second")
    assert files.read("a/one") == b"first"
    files.write("a/one", b"third")
    assert files.read("a/one") == b"third"
    assert files.names() == {"a/one": 5}
    assert files.names("a") == {"a/one": 5}
    files.remove("a/one", "a/none")
    assert files.names() == {}
    with pytest.raises(FileNotFoundError, match="a/one"):
        files.read("a/one")


@pytest.mark.parametrize("content", [b"", b"a\r", b"a\n", b"\r\n", bytes(range(256))])
def test_every_byte_comes_back(here, tmp_path, content: bytes) -> None:
    url, _ = here
    (tmp_path / "a").write_bytes(content)
    Bucket(url).put(tmp_path / "a", "a")
    Bucket(url).fetch("a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == Bucket(url).read("a") == content


def test_a_busy_server_is_asked_again(here) -> None:
    url, gate = here
    files = Bucket(url)
    gate.faults = [Fault("POST|PUT", times=1, status=503), Fault("GET", times=1, status=503)]
    files.write("a", b"content")
    assert files.read("a") == b"content"
    assert [fault.times for fault in gate.faults] == [0, 0]


def test_a_slow_link_is_waited_for(here) -> None:
    url, gate = here
    gate.faults = [Fault("", delay=0.3)]
    Bucket(url).write("a", b"content")
    assert Bucket(url).read("a") == b"content"


def test_a_missing_permission_is_said_in_one_line(here) -> None:
    url, gate = here
    gate.faults = [Fault("POST|PUT", status=403)]
    with pytest.raises(PlaceError, match=f"{url}/a: cannot be written: .*ask for the permission"):
        Bucket(url).write("a", b"content")
    gate.faults = [Fault("GET", status=403)]
    with pytest.raises(PlaceError, match=f"{url}/a: cannot be read: .*ask for the permission"):
        Bucket(url).read("a")


def test_a_missing_bucket_is_said_in_one_line(here) -> None:
    url, _ = here
    other = url.replace("bucket", "nobucket")
    with pytest.raises(PlaceError, match=f"{other}/a: cannot be written: no such bucket"):
        Bucket(other).write("a", b"content")


def test_a_push_that_is_refused_half_way_leaves_what_was_written_first(here, tmp_path) -> None:
    """Whatever is in the bucket is what a folder held at some time."""
    url, gate = here
    for number, name in enumerate(["c", "deep/b", "a"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (number, number))
    (tmp_path / ".hidden").touch()
    mirror = Mirror(tmp_path, url)
    gate.faults = [Fault("deep/b", status=403)]
    with pytest.raises(PlaceError, match="deep/b: cannot be written"):
        mirror.push()
    assert set(Bucket(url).names()) == {"c"}
    gate.faults.clear()
    before = len(gate.seen)
    mirror.push()
    assert set(Bucket(url).names()) == {"a", "c", "deep/b"}
    assert sum(line.startswith(("POST", "PUT")) for line in gate.seen[before:]) == 2
    mirror.push()
    assert sum(line.startswith(("POST", "PUT")) for line in gate.seen[before:]) == 2


def test_what_lies_at_a_url_is_fetched_and_published(here, tmp_path) -> None:
    url, _ = here
    with published(f"{url}/folder") as target:
        (target.path / "deep").mkdir(parents=True)
        (target.path / "deep" / "a").write_bytes(b"1")
    with published(f"{url}/file.bin") as target:
        target.path.write_bytes(b"2")
    with fetched(f"{url}/folder", ValueError) as folder:
        assert (folder.name, (folder / "deep" / "a").read_bytes()) == ("folder", b"1")
    assert not folder.exists()
    with fetched(f"{url}/file.bin", ValueError) as file:
        assert (file.name, file.read_bytes()) == ("file.bin", b"2")
    with pytest.raises(ValueError, match=f"^{url}/none$"), fetched(f"{url}/none", ValueError):
        pass
    with (
        pytest.raises(PlaceError, match=f"^{url}/folder/deep/a: broken$"),
        fetched(f"{url}/folder", ValueError) as folder,
    ):
        raise PlaceError(f"{folder / 'deep' / 'a'}: broken")


def test_one_process_at_a_time_has_the_lease(here, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = here
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    monkeypatch.setattr(lease, "STALE", 1.0)
    first = Lease(url)
    with pytest.raises(LockedError, match=url):
        Lease(url)
    first.check()
    first.release()
    second = Lease(url)  # at once
    with pytest.raises(LockedError):
        first.check()
    second.check()
    # its machine goes: it writes no more, and cannot release
    second._ended.set()
    second._thread.join()
    begun = time.monotonic()
    third = Lease(url)
    assert time.monotonic() - begun > 0.9
    with pytest.raises(LockedError):
        second.check()
    third.release()
    assert len(Bucket(url).names(".lock")) == 1


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(here) -> None:
    url, _ = here
    gone = Lease(url)
    gone._ended.set()
    gone._thread.join()
    content = Bucket(url).read(".lock/000001").replace(str(os.getpid()).encode(), b"99999999")
    Bucket(url).write(".lock/000001", content)
    begun = time.monotonic()
    Lease(url).release()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("ftp://host/a", "ftp://host/a: ftp:// is not supported, only gs://, s3:// and paths"),
        ("gs://bucket", "gs://bucket: expected gs://BUCKET/NAME"),
        ("s3:///a", "expected s3://BUCKET/NAME"),
        (Path("gs://bucket/a"), "gs:/bucket/a: a pathlib.Path cannot hold a URL"),
    ],
)
def test_a_place_that_is_none_is_refused(given: str | Path, problem: str) -> None:
    with pytest.raises(PlaceError, match=problem):
        place(given)


def test_what_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlaceError, match=r"^s3://bucket/a: needs s3fs: pip install .zmar-jax\[s3"):
        place("s3://bucket/a")


def test_places_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert place("~/a") == local("~/a") == Path("/home/me/a")
    assert place("a:b/c") == Path("a:b/c")
    assert place("gs://bucket/a/b/") == "gs://bucket/a/b"
    with pytest.raises(PlaceError, match="gs://bucket/a: is not read or written here"):
        local("gs://bucket/a")
