"""Weights on the Hugging Face Hub: saved, pushed to a stand-in of it, loaded from there."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden
import hub_server
import numpy as np
import pytest
import yaml

from zmar_jax import cli, hub, torch_port
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import Weights, download, load_weights, save_weights

needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="huggingface_hub is not installed: pip install 'zmar-jax[hub]'",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch_port.write_safetensors(path, golden.state_dict("tiny", 0))
    return load_weights(path)


def test_a_folder_comes_back_as_it_was(weights, tmp_path):
    folder = hub.save_pretrained(tmp_path / "mine", weights)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", download.FILE]
    again = hub.from_pretrained(folder)
    assert (again.checksum, again.config) == (weights.checksum, weights.config)
    said = json.loads((folder / "config.json").read_text())
    assert (said["model_type"], said["dim"]) == ("zmar_snflow", 8)


def test_the_card_says_what_the_weights_are(weights, tmp_path):
    card = hub.Card("Mine", "Trained at home.", "cc-by-4.0", ("me/nights",), {"PSNR": 20.5})
    text = hub.model_card(weights, card)
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["datasets"]) == ("cc-by-4.0", ["me/nights"])
    assert front["library_name"] == "zmar-jax"
    for words in ("# Mine", "Trained at home.", weights.checksum, "2,288,902", "| PSNR | 20.5 |"):
        assert words in text


def test_a_card_that_was_edited_stays(weights, tmp_path):
    folder = hub.save_pretrained(tmp_path / "mine", weights)
    (folder / "README.md").write_text("my words")
    hub.save_pretrained(folder, weights)
    assert (folder / "README.md").read_text() == "my words"
    hub.save_pretrained(folder, weights, hub.Card("New"))
    assert "# New" in (folder / "README.md").read_text()


def test_other_folders_are_not_replaced(weights, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"holds keep.txt, so it is not replaced"):
        hub.save_pretrained(tmp_path / "precious", weights)
    with pytest.raises(WeightsError, match="is a file"):
        hub.save_pretrained(tmp_path / "precious" / "keep.txt", weights)
    assert (tmp_path / "precious" / "keep.txt").read_text() == "mine"


def test_nothing_is_half_written(weights, tmp_path, monkeypatch):
    folder = hub.save_pretrained(tmp_path / "mine", weights, hub.Card("Old"))
    monkeypatch.setattr(hub, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.save_pretrained(folder, weights, hub.Card("New"))
    assert "# Old" in (folder / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_configuration_of_other_weights_is_refused(weights, tmp_path):
    folder = hub.save_pretrained(tmp_path / "mine", weights)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"mask_grid": 5}))
    with pytest.raises(WeightsError, match="mask_grid is not that of the weights"):
        hub.from_pretrained(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        hub.from_pretrained(folder)


@needs_hub
def test_what_is_pushed_is_loaded_again_and_kept(weights, the_hub, monkeypatch):
    address = hub.push_to_hub("user/mine", weights)
    assert address.startswith(f"{the_hub.endpoint}/user/mine/commit/")
    assert the_hub.repos["user/mine"].keys() == {download.FILE, "config.json", "README.md"}
    again = hub.from_pretrained("user/mine")
    assert (again.checksum, again.config) == (weights.checksum, weights.config)
    assert hub.from_pretrained("hf:user/mine").checksum == weights.checksum
    commit = the_hub.commit_of("user/mine")
    assert load_weights(f"hf:user/mine@{commit}").checksum == weights.checksum
    fetched = [asked for asked in the_hub.asked if asked.startswith("GET /user/mine/resolve/")]
    assert len(fetched) == 2  # weights and configuration, once
    for leaf, expected in zip(*map(_leaves, (again.params, weights.params)), strict=True):
        assert np.array_equal(leaf, expected)


@needs_hub
def test_what_the_page_shows_runs(weights, the_hub, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "restoring.md").read_text("utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "push_to_hub" in b]
    monkeypatch.chdir(tmp_path)
    save_weights(Path("runs/photos"), weights)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["weights"].checksum == weights.checksum
    card = the_hub.repos["user/nights"]["README.md"]
    assert (Path("nights") / "README.md").read_bytes() == card
    assert b"# Nights" in card


@needs_hub
def test_a_card_on_the_hub_stays(weights, the_hub):
    the_hub.repos["user/mine"] = {"README.md": b"my words"}
    hub.push_to_hub("user/mine", weights)
    assert the_hub.repos["user/mine"]["README.md"] == b"my words"
    hub.push_to_hub("user/mine", weights, hub.Card("New"))
    assert b"# New" in the_hub.repos["user/mine"]["README.md"]


@needs_hub
def test_another_ones_file_is_named(weights, the_hub, tmp_path):
    path = tmp_path / "G.safetensors"
    torch_port.write_safetensors(path, golden.state_dict("tiny", 0))
    the_hub.repos["other/release"] = {"weights/G.safetensors": path.read_bytes()}
    assert load_weights("hf:other/release/weights/G.safetensors").checksum == weights.checksum


@needs_hub
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:nobody/none", "no such repository, or a private one"),
        ("hf:user/empty", "holds no model.safetensors; name a file of it"),
        ("hf:user/empty@v9", "has no revision v9"),
        ("hf:user", "expected hf:USER/NAME"),
    ],
)
def test_what_is_not_there_is_one_clear_line(name, message, the_hub, capsys):
    the_hub.repos["user/empty"] = {"README.md": b""}
    assert cli.main(["info", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: ")
    assert message in line


@needs_hub
def test_pushing_without_the_right_to_is_one_clear_line(weights, the_hub):
    with pytest.raises(WeightsError, match=r"user/mine: cannot be pushed .*hf auth login"):
        hub.push_to_hub("user/mine", weights, token="hf_wrong")
    assert the_hub.repos == {}


def test_without_the_package_it_says_what_to_install(weights, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: load_weights("hf:user/mine"), lambda: hub.push_to_hub("a/b", weights)):
        with pytest.raises(WeightsError, match=r"zmar-jax\[hub\]"):
            call()


@needs_hub
@pytest.mark.slow
def test_without_network_the_cache_is_taken_and_else_it_is_said(weights, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with hub_server.running() as running:
        folder = hub.save_pretrained(tmp_path / "mine", weights)
        running.repos["user/mine"] = {p.name: p.read_bytes() for p in folder.iterdir()}
        environment["HF_ENDPOINT"] = running.endpoint
        assert weights.checksum in _info("hf:user/mine", environment).stdout
    # nobody answers now
    assert weights.checksum in _info("hf:user/mine", environment).stdout
    gone = _info("hf:user/other", environment | {"HF_HUB_OFFLINE": "1"}, code=1)
    (line,) = gone.stderr.splitlines()
    assert line.startswith("error: hf:user/other: cannot be downloaded, and is not in the Hub's ca")
    assert "check the network" in line


def _info(name: str, environment: dict[str, str], code: int = 0) -> Any:
    command = [sys.executable, "-m", "zmar_jax", "info", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def test_names_are_read():
    remote = download.parse("hf:some-one/net.2@v1.0/deep/G.pth")
    assert remote == ("some-one/net.2", "v1.0", "deep/G.pth")
    assert download.parse(Path("hf:a/b")) == ("a/b", None, download.FILE)
