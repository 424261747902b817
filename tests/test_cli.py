"""The command line: every command, its help, and what it says to bad input."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import golden
import jax
import numpy as np
import pytest
import torch_corpus
from PIL import Image

from zmar_jax import cli, torch_port
from zmar_jax.cli import console
from zmar_jax.config import PRESETS, ModelConfig
from zmar_jax.imaging.images import read_photo

COMMANDS = (
    *("restore", "convert", "info", "mask", "prepare", "train", "evaluate", "score", "benchmark"),
    *("compare", "export", "demo", "doctor"),
)


@pytest.fixture(scope="module")
def pth(tmp_path_factory) -> Path:
    state, storages = torch_corpus.state_of(golden.state_dict("tiny", 0))
    data = torch_corpus.pth(state, storages)
    return torch_corpus.put(tmp_path_factory.mktemp("release"), data, "tiny_G.pth")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"$ zmar-jax {command} " in capsys.readouterr().out


def test_convert_there_and_back_keeps_every_live_number(pth, tmp_path, capsys):
    assert cli.main(["convert", str(pth), str(tmp_path / "weights")]) == 0
    report = capsys.readouterr().out
    for line in ("pth -> orbax", "384", "342", "42", "float32", "dim: 8", "checksum"):
        assert line in report
    back = tmp_path / "back.safetensors"
    assert cli.main(["convert", str(tmp_path / "weights"), str(back)]) == 0
    read, original = torch_port.read_state_dict(back), golden.state_dict("tiny", 0)
    assert read.keys() == original.keys()
    for entry in torch_port.key_table(PRESETS["tiny"]):
        for part in entry.parts:
            live = read[entry.key][part.source], original[entry.key][part.source]
            assert np.array_equal(*live), entry.key


def test_convert_refuses_to_replace_unless_told(pth, tmp_path, capsys):
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"mine")
    assert cli.main(["convert", str(pth), str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert cli.main(["convert", str(pth), str(target), "--overwrite"]) == 0
    assert cli.main(["convert", str(target), str(tmp_path / "w")]) == 0
    assert cli.main(["convert", str(target), str(tmp_path / "w"), "--overwrite"]) == 0
    (tmp_path / "w" / ".DS_Store").write_bytes(b"mine")
    assert cli.main(["info", str(tmp_path / "w")]) == 0
    assert cli.main(["convert", str(target), str(tmp_path / "w"), "--overwrite"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w", "w.safetensors"]


def test_convert_never_replaces_a_folder_that_is_no_checkpoint(pth, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep.txt").write_text("mine")
    assert cli.main(["convert", str(pth), str(tmp_path / "precious"), "--overwrite"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert (tmp_path / "precious" / "keep.txt").read_text() == "mine"


def test_the_deviations_names_are_checked_before_anything_is_written(pth, tmp_path, capsys):
    for name in ("b.jpg", "b.std.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name)
    options = ["--heat", "1", "--samples", "2", "--std", "-o", str(tmp_path / "out")]
    assert cli.main(["restore", str(tmp_path), "-c", str(pth), *options]) == 1
    assert "wanted by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_convert_to_pth_needs_torch_and_says_so(pth, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["convert", str(pth), str(tmp_path / "w.pth")]) == 1
    assert "zmar-jax[torch]" in capsys.readouterr().err
    assert not (tmp_path / "w.pth").exists()


def test_info_shows_format_sizes_and_arithmetic(pth, capsys):
    assert cli.main(["info", str(pth)]) == 0
    text = capsys.readouterr().out
    for line in ("pth", "dim: 8", "2,288,902 live", "3,778,630 published", "multiply-adds"):
        assert line in text


@pytest.mark.slow
def test_info_says_that_sizes_are_the_published_ones(tmp_path, capsys):
    state = {e.key: np.zeros(e.shape, np.float16) for e in torch_port.key_table(ModelConfig())}
    torch_port.write_safetensors(tmp_path / "w.safetensors", state)
    assert cli.main(["info", str(tmp_path / "w.safetensors")]) == 0
    text = capsys.readouterr().out
    for line in ("as published", "1603, 1497 used", "44,438,396 live, 57,338,836 published"):
        assert line in text


def test_restore_writes_pngs_and_fails_with_1(pth, tmp_path, capsys):
    photos = tmp_path / "photos" / "deep"
    photos.mkdir(parents=True)
    Image.fromarray(np.full((32, 48, 3), 20, np.uint8)).save(photos / "ok.jpg")
    (photos / "bad.png").write_bytes(b"nonsense")
    (photos / "link.png").symlink_to("nowhere")
    arguments = ["restore", str(photos.parent), "-c", str(pth), "-o", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "1 of 3 restored" in captured.out
    assert "bad.png" in captured.err
    assert "link.png: cannot be read (No such file or directory)" in captured.err
    assert read_photo(tmp_path / "out" / "deep" / "ok.png").rgb.shape == (32, 48, 3)


def test_pictures_of_an_earlier_run_are_replaced_and_not_restored_again(pth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((32, 48, 3), 20, np.uint8)).save("dark.jpg")
    for _ in range(2):
        assert cli.main(["restore", ".", "-c", str(pth)]) == 0
    assert [path.name for path in Path("restored").iterdir()] == ["dark.png"]


@pytest.mark.parametrize("count", [1, 2])
def test_the_result_is_shown_if_wanted(count, pth, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(console, "open_path", lambda path: not shown.append(path))
    names = [f"{n}.png" for n in range(count)]
    for name in names:
        Image.fromarray(np.full((32, 48, 3), 20, np.uint8)).save(tmp_path / name)
    inputs, out = [str(tmp_path / name) for name in names], tmp_path / "out"
    assert cli.main(["restore", *inputs, "-c", str(pth), "-o", str(out), "--open"]) == 0
    assert shown == [out / names[0] if count == 1 else out]


def test_completion_knows_the_commands_and_their_options(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--tyro-print-completion", "bash"])
    assert stop.value.code in (0, None)
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--no-reference" in script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "no_such.png", "-c", "w"], "no_such.png"),
        (["restore", "{png}", "-c", "no_such_weights"], "no_such_weights"),
        (["restore", "{png}", "-c", "w", "-o", "{folder}"], "would overwrite the input"),
        (["restore", "{png}", "-c", "w", "--samples", "3"], "needs --heat above 0"),
        (["restore", "{png}", "-c", "w", "--heat", "1", "--std"], "--std needs --samples"),
        (["restore", "{png}", "-c", "w", "--heat", "-1"], "--heat must be 0 or more"),
        (["restore", "{png}", "-c", "w", "--heat", "inf"], "--heat must be 0 or more"),
        (["restore", "{png}", "-c", "w", "--seed", "9" * 20], "--seed must be 0 or more"),
        (["restore", "{png}", "-c", "w", "-o", "{png}"], "would overwrite the input"),
        (["restore", "{png}", "-c", "w", "-o", "{png}/out"], "cannot be made"),
        (["convert", "{png}", "w.pth", "--to", "safetensors"], "expected a .pth or .safetensors"),
        (["restore", "{png}", "-c", "w", "--memory", "16 apples"], "as 16GiB or 800MB"),
        (["restore", "{png}", "-c", "w", "--memory", "9" * 400], "as 16GiB or 800MB"),
        (["restore", "{png}", "-c", "w", "--memory", "0.1"], "as 16GiB or 800MB"),
        (["restore", "{png}", "-c", "w", "--devices", "9"], "--devices must be 1 to 4"),
        (["restore", "{png}", "-c", "w", "--samples", "0"], "--samples must be 1 or more"),
        (["info", "{png}"], "expected a .pth or .safetensors file"),
        (["info", "{folder}"], "not a zmar_jax checkpoint"),
        (["convert", "{png}", "w"], "expected a .pth or .safetensors file"),
        (["benchmark", "restore", "--size", "400"], "--size must be HEIGHTxWIDTH"),
        (["benchmark", "restore", "--repeats", "0"], "--repeats must be 1"),
        (["benchmark", "restore", "--size", "99999x99999", "--preset", "tiny"], "make it smaller"),
        (["prepare", "sid", "--source", "{folder}/none", "--data-dir", "d"], "no such folder"),
        (["prepare", "sid", "--source", "{folder}", "--crop", "0"], "--crop must be 1"),
        (["prepare", "sid", "--source", "{folder}", "--clean"], "--clean is of photos, not of sid"),
        (["prepare", "photos", "--source", "{folder}", "--val-share", "1"], "--val-share must be"),
        (["prepare", "photos", "--source", "{folder}", "--workers", "-1"], "--workers must be"),
        (["prepare", "photos", "--source", "{folder}/none", "--data-dir", "d"], "no such folder"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, capsys):
    png = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(png)
    filled = [a.format(png=png, folder=tmp_path) for a in arguments]
    assert cli.main(filled) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1


def test_singular_weights_are_refused_by_name(tmp_path, capsys):
    state = golden.state_dict("tiny", 0)
    key = next(key for key in state if key.endswith("invconv.weight"))
    path = tmp_path / "w.safetensors"
    torch_port.write_safetensors(path, state | {key: np.zeros_like(state[key])})
    assert cli.main(["benchmark", "restore", "--checkpoint", str(path), "--size", "16x16"]) == 1
    assert f"{path}: an invconv.weight is singular" in capsys.readouterr().err


def test_a_device_without_memory_is_one_clear_line(monkeypatch, capsys):
    def fails(*_, **__):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(cli.app, "cli", fails)
    said = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBuffer 1: 9 bytes"
    assert cli.main(["train"]) == 1
    told = capsys.readouterr().err
    assert "Out of memory allocating 9 bytes.); lower the batch" in told
    assert len(told.splitlines()) == 1
    said = "INTERNAL: a mistake"
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.main(["train"])


def test_benchmark_prints_json(capsys):
    options = ["--size", "30x44", "--preset", "tiny", "--repeats", "1", "--json"]
    assert cli.main(["benchmark", "restore", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == [32, 48]
    assert [part["name"] for part in result["parts"]] == ["encoder", "flow"]
    assert all(p["seconds"] > 0 and p["compile_seconds"] > 0 for p in result["parts"])
    assert result["peak_memory"] > 0


@pytest.mark.slow
def test_the_readmes_python_is_a_script(pth, tmp_path):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    script = text.partition("```python\n")[2].partition("```")[0]
    small = ["model.dim=2", "model.blocks=[1,1,1,1]", "model.heads=[1,1,1,1]", "model.flow_steps=1"]
    small += ["data.workers=0", "data.crop=16", "data.batch_size=4"]
    for said, quicker in (
        ('["data.workers=0"]', repr(small)),
        ("= sample()", "= (whole[:32, :32] for whole in sample())"),
    ):
        assert said in script
        script = script.replace(said, quicker)
    (tmp_path / "script.py").write_text(script)
    shutil.copy(pth, tmp_path / "LOLv2_G.pth")
    command, quick = [sys.executable, "script.py"], {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | quick, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # not at exit, either


def test_the_script_at_the_top_converts(pth, tmp_path):
    script = Path(__file__).parents[1] / "convert_torch_weights.py"
    command = [sys.executable, str(script), str(pth), str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w.safetensors").exists()


def test_a_home_folder_is_found_without_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["info", "~/none.pth"]) == 1
    assert f"error: {tmp_path}/none.pth: " in capsys.readouterr().err


def test_the_command_line_starts_before_all_that_takes_long():
    """So that Ctrl-C is heard from the first moment on."""
    script = "import sys, zmar_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_warnings_of_libraries_are_one_line(capsys):
    with warnings.catch_warnings(), console.warnings_in_one_line():
        warnings.simplefilter("always")
        warnings.warn("a cache\n cannot be written", stacklevel=1)
    assert capsys.readouterr().err == "warning: a cache cannot be written\n"
