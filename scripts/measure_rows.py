"""Rows of measure_gpu.py: which commands there are, in which order, and what they print.

A command prints a JSON object as its last line, or writes one, as `compare_torch.py --json` does.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
Result = dict[str, Any]
NUMERIC_TESTS = ("golden", "ops", "conv", "bijections", "fast_forms", "models", "rows")
"""Fast tests of numbers on one device; the others are of files, or want simulated devices."""
LIMITS = {"train": 180.0, "restore": 100.0, "tests": 90.0}
"""Seconds that a row may take."""
PARENT = {"JAX_PLATFORMS": "cpu"}
"""Of compare_torch.py, whose workers choose the device: it would take memory that they need."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. `settings` are changes to the configuration, section.key=value, beside
    those that make the model `preset`'s."""

    device: str
    preset: str
    restore: str
    crop: int
    batch: int
    repeats: int
    settings: tuple[str, ...]

    def training(self, policy: str) -> tuple[str, ...]:
        """All changes to the configuration that make it the training of these sizes."""
        from zmar_jax.config import PRESETS

        model = dataclasses.asdict(PRESETS[self.preset]) | {"policy": policy}
        found = [f"model.{name}={json.dumps(value)}" for name, value in model.items()]
        found += [f"data.batch_size={self.batch}", f"data.crop={self.crop}", "train.remat=blocks"]
        return (*found, *self.settings)


@dataclasses.dataclass(frozen=True)
class Row:
    """A command, how many seconds it may take, and how to read its results.

    `read` is given what it printed and the file that it may have written, and returns one result
    for each line of the table.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    read: Callable[[str, Path], list[Result]]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


class Unreadable(ValueError):
    """A command ended well and did not say what it should."""


def rows(sizes: Sizes) -> list[Row]:
    """The most important first, as time may end."""
    found = [_compared(sizes, "train", "bfloat16"), _compared(sizes, "restore", "bfloat16")]
    found += [_compared(sizes, "train", "float32"), _compared(sizes, "restore", "float32")]
    found += [_profile(sizes, "bfloat16"), _tests(sizes)]
    found += [_compiled(sizes, task, "bfloat16") for task in ("train", "restore")]
    found += [_step(sizes, *what) for what in _steps(sizes)]
    found += [_profile(sizes, "float32")]
    found += [_compiled(sizes, task, "float32") for task in ("train", "restore")]
    return found


def _script(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, str(SCRIPTS / name), *options)


def _compare(sizes: Sizes, task: str, policy: str, *frameworks: str) -> tuple[str, ...]:
    return _script(
        "compare_torch.py",
        *("--task", task, "--policy", policy, "--device", sizes.device),
        *("--size", sizes.restore, "--crop", str(sizes.crop), "--batch", str(sizes.batch)),
        *("--preset", sizes.preset, "--repeats", str(sizes.repeats)),
        *("--frameworks", *frameworks, "--json", "{json}"),
    )


def _compared(sizes: Sizes, task: str, policy: str) -> Row:
    command = _compare(sizes, task, policy, "torch", "jax")
    return Row(f"{task}, {policy}", command, LIMITS[task], _read_compared, PARENT)


def _compiled(sizes: Sizes, task: str, policy: str) -> Row:
    command = _compare(sizes, task, policy, "torch.compile")
    return Row(f"{task}, {policy}, torch.compile", command, LIMITS[task], _read_compared, PARENT)


def _read_compared(printed: str, file: Path) -> list[Result]:
    if not file.exists():
        raise Unreadable("it wrote no results")
    content = json.loads(file.read_text())
    found = [
        {
            "what": row["task"],
            "policy": row["policy"],
            "framework": row["framework"],
            "device": row["device"],
            "shape": row["shape"],
            "seconds": min(run["seconds"] for run in row["runs"]),
            "first_call": row["first_call"],
            "peak_memory": row["peak_memory"],
            "difference": row["difference"],
        }
        for row in content["rows"]
    ]
    problems = content["failed"] + content["skipped"]
    return found + [{"what": "a framework", "failed": problem} for problem in problems]


Form = tuple[str, tuple[str, ...], dict[str, str]]
"""Name, settings, environment."""


def _steps(sizes: Sizes) -> list[Form]:
    """Train steps of zmar_jax alone, in other forms."""
    found: list[Form] = [
        (f"model.{name}={choice}", (f"model.{name}={choice}",), {})
        for name, choices in kernel_choices().items()
        for choice in choices
    ]
    if sizes.device != "cpu":
        found.append(("XLA without Triton", (), {"XLA_FLAGS": no_triton()}))
    remats = ("none", "reversible")
    return found + [(f"train.remat={r}", (f"train.remat={r}",), {}) for r in remats]


def no_triton() -> str:
    """XLA's flags, as the environment has them."""
    from zmar_jax.runtime.compilation import NO_TRITON

    return " ".join(f"--{name}={str(value).lower()}" for name, value in NO_TRITON.items())


def kernel_choices() -> dict[str, tuple[str, ...]]:
    """Fields of the model's configuration that choose kernels, and what they may be."""
    from zmar_jax.config import ModelConfig

    hints = get_type_hints(ModelConfig)
    return {name: get_args(hint) for name, hint in hints.items() if "kernel" in name}


def _step(sizes: Sizes, name: str, settings: tuple[str, ...], environment: dict[str, str]) -> Row:
    command = (sys.executable, "-m", "zmar_jax", "benchmark", "train")
    command += (*sizes.training("bfloat16"), *settings, "--repeats", str(sizes.repeats), "--json")
    return Row(f"train, bfloat16, {name}", command, LIMITS["train"], _read_step(name), environment)


def _read_step(name: str) -> Callable[[str, Path], list[Result]]:
    def read(printed: str, file: Path) -> list[Result]:
        said = last_json(printed)
        shape = [said["batch_size"], said["crop"], said["crop"]]
        known = {key: said[key] for key in ("policy", "device", "seconds", "peak_memory")}
        names = {"what": "train", "framework": f"jax, {name}", "shape": shape}
        return [names | known | {"first_call": said["compile_seconds"]}]

    return read


def _profile(sizes: Sizes, policy: str) -> Row:
    command = _script("profile_step.py", *sizes.training(policy))
    return Row(
        f"profile, {policy}", command, LIMITS["train"], lambda printed, _: [last_json(printed)]
    )


def _tests(sizes: Sizes) -> Row:
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in NUMERIC_TESTS]
    command = (sys.executable, "-m", "pytest", "-q", "-n", "0", *files)
    # simulated CPU devices beside the GPU, which is the default
    platforms = sizes.device if sizes.device == "cpu" else f"{sizes.device},cpu"
    environment = {"JAX_PLATFORMS": platforms}
    return Row("fast tests of numbers", command, LIMITS["tests"], _read_tests, environment)


def _read_tests(printed: str, file: Path) -> list[Result]:
    """Also of tests that failed or were cut short: pytest's last line counts them."""
    match = re.search(r"(?m)^=*\s*((?:\d+ \w+,? ?)+) in [\d.]+s", printed)
    if not match:
        raise Unreadable("pytest counted no tests")
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", match[1])}
    return [{"what": "fast tests of numbers", "tests": counts}]


def last_json(printed: str) -> Result:
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise Unreadable("it printed no results")
    return json.loads(lines[-1])
