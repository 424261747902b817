"""--open: the program that a machine has for files is started with the result."""

import time
from pathlib import Path

import pytest

from zmar_jax.cli import console
from zmar_jax.runtime import opening


@pytest.fixture
def opened(tmp_path, monkeypatch) -> Path:
    """Where a stand-in for xdg-open writes what it was given."""
    tool, written = tmp_path / "bin" / "xdg-open", tmp_path / "opened"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\nprintf %s "$*" > "{written}.part" && mv "{written}.part" "{written}"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setattr(opening.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return written


def test_the_file_is_given_to_it(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    console.show(Path("a picture.png"))
    for _ in range(500):
        if opened.exists():
            break
        time.sleep(0.02)
    assert opened.read_text() == f"{tmp_path}/a picture.png"
    assert capsys.readouterr().err == ""


def test_where_nobody_looks_it_is_said(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY")
    console.show(tmp_path / "a.png")
    assert (
        capsys.readouterr().err == f"--open: nothing here shows files; look at {tmp_path}/a.png\n"
    )
    assert not opened.exists()


def test_a_mac_has_its_own(monkeypatch):
    monkeypatch.setattr(opening.sys, "platform", "darwin")
    assert opening.opener() == ["open"]


def test_paths_are_links(tmp_path):
    link = console.link(tmp_path / "a b.png")
    assert link.plain == f"{tmp_path}/a b.png"
    assert str(link.style) == f"link file://{tmp_path}/a%20b.png"
