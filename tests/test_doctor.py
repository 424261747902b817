"""`zmar-jax doctor`: what a bug report needs, and what it says of what is broken."""

import json

import jax
import pytest

from zmar_jax import cli, weights
from zmar_jax.benchmark import doctor


@pytest.mark.slow
def test_it_tells_what_is_here_and_checks_each_part(capsys, monkeypatch):
    monkeypatch.setenv("JAX_SOME_SETTING", "7")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    facts = told["facts"]
    assert facts["jax"] == jax.__version__
    assert facts["devices"] == "4 x cpu cpu"
    assert facts["JAX_SOME_SETTING"] == "7"
    assert facts["free memory"].endswith(" GiB")
    assert "hidden" not in str(told)
    assert [check["name"] for check in told["checks"]] == list(doctor.CHECKS)
    assert all(check["passed"] for check in told["checks"])


def test_what_is_broken_is_named_and_the_rest_is_checked(capsys, monkeypatch):
    def broken(*_):
        raise ValueError("nano.safetensors: damaged\nhere")

    monkeypatch.setattr(weights, "load_weights", broken)
    monkeypatch.setitem(doctor.CHECKS, "restoring", lambda: "fine")
    assert cli.main(["doctor"]) == 1
    words = capsys.readouterr().out.replace("│", " ").split()  # a table, as wide as the terminal
    assert "FAILED," in words
    assert "ValueError: nano.safetensors: damaged here" in " ".join(words)
    assert "fine" in words
