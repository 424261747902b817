"""Commands that are given a URL use it or refuse it in one line; none makes a folder of it."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zmar_jax.cli import main
from zmar_jax.config import Config, MaskConfig, load_config
from zmar_jax.data.datasets import open_prepared, prepare
from zmar_jax.data.folders import survey
from zmar_jax.data.masks import load_masks
from zmar_jax.deploy.exporting import export_restorer
from zmar_jax.deploy.loading import load_exported
from zmar_jax.evaluate.parity import read_dump
from zmar_jax.hub import from_pretrained, save_pretrained
from zmar_jax.restore.arguments import picture
from zmar_jax.train import train
from zmar_jax.weights import load_weights, save_weights

WEIGHTS = load_weights()
ANYWHERE = [
    *("restore URL", "restore -c URL", "restore -o URL", "info URL"),
    *("convert URL b.safetensors", "convert bundled URL", "export URL", "export a.zmar -c URL"),
    *("train --config URL --workdir a", "train --config tiny --workdir URL"),
    *("evaluate --data builtin -c URL", "evaluate --data builtin -o URL"),
    *("evaluate --data lol_v1 --data-dir URL", "score --low a --restored b -c URL"),
    *("compare --weights URL --activations a", "compile --topology v5e:1x1 --config URL"),
    *("benchmark restore --checkpoint URL", "benchmark train --config URL"),
    *("benchmark data --config URL", "demo -c URL"),
]
"""Options that take the URL of a bucket."""
HERE = [
    *("restore --mask URL", "mask URL b", "mask a URL", "mask a b --masks URL"),
    *("prepare lol_v1 --source URL", "prepare lol_v1 --source a --data-dir URL"),
    *("prepare photos --source URL", "prepare photos --source a --data-dir URL"),
    *("evaluate --data URL", "evaluate --data a --gt URL", "evaluate --data builtin --masks URL"),
    *("score --low URL --restored b", "score --low a --restored URL"),
    "compare --weights bundled --activations URL",
]
"""Options that take a folder or a file of this machine alone."""


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to be in, in which nothing is made."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def refusal(command: str, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is one line."""
    assert main(command.replace("URL", url).split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("command", ANYWHERE)
def test_a_url_of_another_scheme_is_refused(command: str, capsys) -> None:
    line = refusal(command, "foo://bucket/a", capsys)
    assert line.startswith("error: foo://bucket/a: foo:// is not supported, only gs://, s3://")


@pytest.mark.parametrize("command", ANYWHERE)
def test_what_a_bucket_needs_is_said_where_it_is_missing(command: str, capsys, monkeypatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "gcsfs" else find(name, *more)

    monkeypatch.setattr("importlib.util.find_spec", without)
    line = refusal(command, "gs://bucket/a", capsys)
    assert line.startswith("error: gs://bucket/a: needs gcsfs: pip install 'zmar-jax[gcs]'")


@pytest.mark.parametrize("command", HERE)
@pytest.mark.parametrize("scheme", ["foo", "gs"])
def test_a_url_is_refused_where_none_is_read(command: str, scheme: str, capsys) -> None:
    line = refusal(command, f"{scheme}://bucket/a", capsys)
    assert line.startswith(f"error: {scheme}://bucket/a: is not read or written here; copy it")


@pytest.mark.parametrize(
    "call",
    [
        load_weights,
        lambda url: save_weights(url, WEIGHTS),
        load_config,
        lambda url: open_prepared("lol_v1", url, "test"),
        lambda url: prepare("lol_v1", url, "data", 16),
        survey,
        lambda url: load_masks(MaskConfig(source=url)),
        picture,
        load_exported,
        lambda url: export_restorer(url, WEIGHTS),
        read_dump,
        lambda url: save_pretrained(url, WEIGHTS),
        from_pretrained,
        lambda url: train(Config(), url),
    ],
)
def test_so_is_it_in_python(call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"^foo://bucket/a: "):
        call("foo://bucket/a")
