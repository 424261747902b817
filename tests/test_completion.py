"""The script that completes commands in a shell, in that shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from zmar_jax import cli

ASK = """
source "$1"
COMP_WORDS=("${@:2}"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
$(complete -p zmar-jax | sed -E 's/.*-F ([^ ]+).*/\\1/') zmar-jax "${COMP_WORDS[$COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is printed for bash."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    path = tmp_path_factory.mktemp("completion") / "zmar-jax"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        with pytest.raises(SystemExit):
            cli.main(["--tyro-print-completion", "bash"])
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"evaluate"}),
        (["restore", "--br"], {"--brightness"}),
        (["export", "--"], {"--help", "--checkpoint", "--size", "--platforms", "--overwrite"}),
    ],
)
def test_bash_completes_commands_and_options(script, words, expected):
    command = ["bash", "-c", ASK, "ask", script, "zmar-jax", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert set(done.stdout.split("\n")) - {""} == expected, done.stderr


def test_no_line_of_help_is_taken_for_a_word(script):
    for command in ("restore", "train", "demo"):
        asked = ["bash", "-c", ASK, "ask", script, "zmar-jax", command, "--"]
        words = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
        assert len(words) > 5
        assert all(word.startswith("--") and " " not in word for word in words)
