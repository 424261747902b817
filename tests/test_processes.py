"""What processes tell each other; threads stand for them, and one that waits for ever shows."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest
from PIL import Image

from zmar_jax.config import Config, DataConfig, MaskConfig, TrainConfig, override
from zmar_jax.data.pipeline import make_loader
from zmar_jax.runtime import processes
from zmar_jax.runtime.processes import HostsDifferError, ProcessError, agree, from_primary, together
from zmar_jax.train import hosts

COUNT = 3


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Future[Any]]]:
    """Runs fn(process) in three processes at once; a wait of two seconds is one for ever."""
    mine = threading.local()
    barrier = threading.Barrier(COUNT, timeout=2)
    texts = [""] * COUNT

    def gather(text: str) -> list[str]:
        texts[mine.process] = text
        barrier.wait()
        everyone = list(texts)
        barrier.wait()
        return everyone

    def one(fn: Callable[[int], Any], process: int) -> Any:
        mine.process = process
        return fn(process)

    def all_of_them(fn: Callable[[int], Any]) -> list[Future[Any]]:
        with ThreadPoolExecutor(COUNT) as pool:
            return [pool.submit(one, fn, process) for process in range(COUNT)]

    monkeypatch.setattr(processes, "gather", gather)
    monkeypatch.setattr(processes, "primary", lambda: mine.process == 0)
    return all_of_them


def fails(message: str) -> Any:
    raise OSError(message)


def test_the_first_process_answers_for_all(run) -> None:
    found = run(lambda process: from_primary(lambda: {"asked": process}))
    assert [future.result() for future in found] == [{"asked": 0}] * COUNT


def test_an_error_in_the_first_process_is_one_in_all(run) -> None:
    first, *others = run(lambda process: from_primary(lambda: fails(f"disk of {process}")))
    with pytest.raises(OSError, match=r"^disk of 0$"):
        first.result()
    for future in others:
        with pytest.raises(ProcessError, match=r"^process 0: disk of 0$"):
            future.result()


def test_an_error_in_any_process_is_one_in_all(run) -> None:
    found = run(lambda process: together(lambda: fails("no folder") if process == 1 else process))
    with pytest.raises(OSError, match=r"^no folder$"):
        found[1].result()
    for future in (found[0], found[2]):
        with pytest.raises(ProcessError, match=r"^process 1: no folder$"):
            future.result()
    assert [f.result() for f in run(lambda process: together(lambda: process))] == [0, 1, 2]


def test_all_that_differs_is_one_table(run, monkeypatch) -> None:
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "vm")
    rates = [0.001, 0.1, 0.001]
    found = run(lambda p: agree({"steps": 4, "rate": rates[p], **({"ema": 1} if p else {})}))
    for future in found:
        with pytest.raises(HostsDifferError) as caught:
            future.result()
        assert str(caught.value).splitlines() == [
            "the hosts of this run do not see the same:",
            "  rate  process 0 (vm), process 2 (vm): 0.001; process 1 (vm): 0.1",
            "  ema   process 0 (vm): null; process 1 (vm), process 2 (vm): 1",
            "start the same command on each, with the same files and versions",
        ]
    assert [f.result() for f in run(lambda p: agree({"steps": 4, "name": "\udcff"}))] == [None] * 3


def test_a_table_names_few_of_many_hosts(monkeypatch) -> None:
    told = [json.dumps([f"vm{i}", {"rate": int(i == 7)}]) for i in range(256)]
    monkeypatch.setattr(processes, "gather", lambda text: told)
    with pytest.raises(HostsDifferError) as caught:
        agree({})
    (row,) = [line for line in str(caught.value).splitlines() if "rate" in line]
    assert row == (
        "  rate  process 0 (vm0), process 1 (vm1), process 2 (vm2), process 3 (vm3) and 251 more: "
        "0; process 7 (vm7): 1"
    )


def test_alone_everything_agrees() -> None:
    agree({"steps": 4})
    assert from_primary(lambda: "\udcff") == "\udcff"
    with pytest.raises(OSError, match="disk"):
        together(lambda: fails("disk"))


@pytest.mark.parametrize(
    "change",
    [
        "train.learning_rate=0.1",
        "train.validate_every=7",
        "data.seed=3",
        "model.policy=bfloat16",
        "data.masks.share=[0.1, 0.2]",
        "data.masks.source=none",
        "data.masks.source=masks",
        "data.folder=photos",
        "train.init=bundled",
    ],
)
def test_every_setting_is_compared(change: str) -> None:
    config = Config()
    assert hosts.settings(override(config, [change]), False) != hosts.settings(config, False)


def test_places_may_differ() -> None:
    """What lies there is compared by its content."""
    here, there = (
        Config(
            data=DataConfig(
                folder=f"/{at}/photos", val_folder=f"/{at}/val", data_dir=f"/{at}/data",
                workers=len(at), masks=MaskConfig(source=f"/{at}/masks"),
            ),
            train=TrainConfig(init=f"/{at}/weights.pth"),
        )
        for at in ("here", "there")
    )  # fmt: skip
    assert hosts.settings(here, False) == hosts.settings(there, False)
    assert hosts.settings(here, False) != hosts.settings(here, True)


@pytest.mark.parametrize("package", hosts.PACKAGES)
def test_versions_are_compared(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hosts.settings(Config(), False)
    known = hosts.version
    monkeypatch.setattr(hosts, "version", lambda name: "0.0" if name == package else known(name))
    after = hosts.settings(Config(), False)
    assert {key for key in after if after[key] != before[key]} == {f"version of {package}"}


def test_settings_of_jax_are_compared() -> None:
    before = hosts.settings(Config(), False)
    with jax.default_matmul_precision("bfloat16"):
        after = hosts.settings(Config(), False)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"JAX setting jax_default_matmul_precision"}
    assert before["kind of device"] == jax.devices()[0].device_kind


def test_a_missing_package_is_a_fact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "PACKAGES", ("no-such-package",))
    assert hosts.settings(Config(), False)["version of no-such-package"] is None


def test_inputs_tell_masks_apart(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (16, 16)).save(photos / "photo.png")
    facts = []
    for name, lost in (("a", (0, 0, 4, 4)), ("b", (0, 0, 4, 5))):
        mask = Image.new("L", (16, 16))
        mask.paste(255, lost)
        (tmp_path / "masks" / name).mkdir(parents=True)
        mask.save(tmp_path / "masks" / name / "mask.png")
        data = DataConfig(
            folder=str(photos), val_folder=str(photos), data_dir=str(tmp_path / name),
            crop=16, batch_size=1, workers=0, masks=MaskConfig(str(tmp_path / "masks" / name)),
        )  # fmt: skip
        train, val = (make_loader(data, split) for split in ("train", "val"))
        facts.append(hosts.inputs(train, val, None, None))
    assert "masks" in {key for key in facts[0] if facts[0][key] != facts[1][key]}
