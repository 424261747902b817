"""What lies in the folder of a run, and whether it is whole.

```
WORKDIR/config.yaml           the configuration of the newest checkpoint, every key
WORKDIR/run.json              how the last start computes: versions, commit, hosts, devices, mesh
WORKDIR/checkpoints/STEP/     state/ data/ config/ run/ metrics/ and digests.json
WORKDIR/damaged/STEP/         what could not be read
```
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zmar_jax.files.replacing import write_whole

BEST = "psnr"
"""The metric, of validation, whose highest value makes the best checkpoint."""
DIGESTS = "digests.json"
# what Orbax writes after the digests, and does not need
_UNCHECKED = {DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt"}


def is_run(path: str | Path) -> bool:
    """Whether `path` is the workdir of a run, the checkpoints in it, or one of them."""
    path = Path(path)
    return checkpoints_of(path).is_dir() or (path / DIGESTS).is_file()


def checkpoints_of(path: Path) -> Path:
    """The folder of a run's checkpoints, given it or the workdir."""
    given = any((path / str(step) / DIGESTS).is_file() for step in steps(path))
    return path if given else path / "checkpoints"


def steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints in `folder`, ascending."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal())


def without_states(names: Iterable[str]) -> set[str]:
    """Of the names of files in the folder of a run those that whole checkpoints have besides their
    arrays: all that is needed to choose one."""
    names = list(names)
    whole = [name.removesuffix(DIGESTS) for name in names if name.split("/")[-1] == DIGESTS]
    return {
        name
        for name in names
        for start in whole
        if name.startswith(start) and not name.startswith(f"{start}state/")
    }


def best_first(folder: Path, found: Iterable[int]) -> list[int]:
    """The steps, best by validation PSNR, then the others, newest first."""
    newest = sorted(found, reverse=True)
    scores = {step: score for step in newest if (score := _psnr(folder / str(step))) is not None}
    if not scores:
        return newest
    best = max(scores, key=lambda step: (scores[step], step))
    return [best, *(step for step in newest if step != best)]


def damage(path: Path, item: str = "") -> str | None:
    """What is wrong with the files of a checkpoint, or of one item of it; None if nothing is.

    Bytes are compared with the digests of when they were written: Orbax restores most changed
    bytes without noticing.
    """
    try:
        expected: dict[str, str] = json.loads((path / DIGESTS).read_text(encoding="utf-8"))
        for name, digest in _digests(path, [n for n in expected if n.startswith(item)]):
            if digest != expected[name]:
                return f"{name} has changed"
    except OSError as e:
        return f"{os.path.relpath(e.filename or path, path)}: {e.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{DIGESTS} has changed"
    return None


def metrics_damage(path: Path) -> str | None:
    """`damage` of the metrics, which Orbax reads of all checkpoints and must understand.

    Missing files are none: what remains of a checkpoint when a process is killed while it deletes
    it, and Orbax deletes it with the next save.
    """
    there = (path / DIGESTS).exists() and (path / "metrics" / "metrics").exists()
    return damage(path, "metrics") if there else None


def saved_config(path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was made with, if `damage(path, "config")` finds none."""
    return json.loads((path / "config" / "metadata").read_text(encoding="utf-8"))


def write_digests(path: Path) -> None:
    """Writes down what the files of a checkpoint hold, for `damage`."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in _UNCHECKED]
    names = sorted(file.relative_to(path).as_posix() for file in files)
    write_whole(path / DIGESTS, json.dumps(dict(_digests(path, names)), indent=1))


def free_name(path: Path) -> Path:
    """`path`, or with a number after it where that exists."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def _digests(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with (folder / name).open("rb") as file:
            yield name, hashlib.file_digest(file, "sha256").hexdigest()


def _psnr(path: Path) -> float | None:
    try:
        return float(json.loads((path / "metrics" / "metrics").read_text(encoding="utf-8"))[BEST])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not validated, or damaged, which the digests will tell
