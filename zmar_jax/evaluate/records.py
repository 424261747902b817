"""What an evaluation has done so far, so that it can go on.

```
OUT/evaluation.json           settings: weights, data, protocol, sampling
OUT/records.jsonl             one line for each picture that is done
OUT/records.N.jsonl           the same, by process N of several, until all is done
OUT/restored/ID.png           its restoration
OUT/uncertainty/ID.png        16-bit grey, 1/256 of a level of 255
```
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zmar_jax.files.errors import errors_as
from zmar_jax.files.lease import FOLDER, Lease
from zmar_jax.files.lock import LockedError, take
from zmar_jax.files.mirror import Mirror, Published, named, scratch
from zmar_jax.files.places import Place
from zmar_jax.files.replacing import write_whole
from zmar_jax.imaging.images import Photo, write_photo

RESTORED, UNCERTAINTY = "restored", "uncertainty"
_SETTINGS, _RECORDS = "evaluation.json", "records.jsonl"
_FINENESS = 256
Record = dict[str, Any]


class EvaluationError(ValueError):
    """An evaluation that cannot be begun, gone on with or written."""


@contextlib.contextmanager
def only_evaluation(out: Place) -> Iterator[Published]:
    """Keeps other evaluations out of the folder, which is made, until left or the process ends.

    Each would drop records of the other. Of a URL, what lies there is fetched to a folder of this
    machine to go on in, whose files are put there with each `put`, and at the end.

    Raises:
      EvaluationError: another evaluation is there, or the folder cannot be written.
      PlaceError: the bucket cannot be read or written.
    """
    try:
        if isinstance(out, Path):
            with writing(out):
                lock = take(out)
        else:
            lock = Lease(out)
    except LockedError as e:
        raise EvaluationError(
            f"{out}: another evaluation is writing there; wait until it has ended, or choose "
            "another --out"
        ) from e
    try:
        with shared_folder(out) as folder:
            yield folder
    finally:
        lock.release()


@contextlib.contextmanager
def shared_folder(out: Place) -> Iterator[Published]:
    """The folder; or one of this machine with what lies at the URL, where it is put at the end."""
    if isinstance(out, Path):
        yield Published(out)
        return
    with scratch(out.rpartition("/")[2]) as folder, named(folder, out):
        mirror = Mirror(folder, out)

        def get() -> None:
            mirror.pull(lambda name: name[:6] != f"{FOLDER}/" and not (folder / name).exists())

        get()
        yield Published(folder, mirror.push, get, mirror.bucket.remove)
        mirror.push()


class Records:
    """The finished pictures of one evaluation, by id.

    A picture counts as finished if its line is whole, its inputs are the same as then, and its
    files are as they were written; else it is computed again.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False, process: int = 0
    ):
        """Goes on in `folder`, or begins there.

        Args:
          process: which of several that share the evaluation; all but the first join what that one
            has begun.

        Raises:
          EvaluationError: the folder holds an evaluation with other settings and `overwrite` is
            off, or it cannot be read or written.
        """
        self.folder: Path = folder
        self._path = folder / (f"records.{process}.jsonl" if process else _RECORDS)
        there = folder / _SETTINGS
        with writing(folder):
            if process:
                self._join(there, settings)
                return
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = _read(folder / _RECORDS, *parts_of(folder))
            if overwrite:
                self._discard()
            elif there.exists():
                _compare(there, settings)
            write_whole(there, json.dumps(settings, indent=1) + "\n")
            self._rewrite()

    def _join(self, there: Path, settings: Mapping[str, Any]) -> None:
        if not there.exists():
            raise EvaluationError(
                f"{self.folder}: here is not what the first host has begun there; --out must be a "
                "folder that all hosts see, or a bucket"
            )
        _compare(there, settings)
        self._lines = _read(self.folder / _RECORDS)

    def merge(self) -> None:
        """Takes the records of all processes, which are done; to be called in the first one."""
        with writing(self.folder):
            self._lines = _read(self.folder / _RECORDS, *parts_of(self.folder))
            self._rewrite()

    def _rewrite(self) -> None:
        """One file of whole lines, whatever a killed process has left."""
        write_whole(self._path, "".join(_line(record) for record in self._lines.values()))
        for part in parts_of(self.folder):
            part.unlink()

    def find(self, id_: str, digest: str) -> Record | None:
        """The record of a finished picture with these inputs."""
        record = self._lines.get(id_)
        if record is None or record["digest"] != digest:
            return None
        whole = all(_digest(self.folder / name) == was for name, was in record["files"].items())
        return record if whole else None

    def add(
        self, id_: str, digest: str, restored: np.ndarray, std: np.ndarray | None, values: Record
    ) -> Record:
        """Writes the pictures, then the record, which makes them count.

        Args:
          restored: uint8 [H, W, 3]; std: float [H, W], in levels of 255, or None.

        Raises:
          EvaluationError, ImageError: they cannot be written.
        """
        photos = {f"{RESTORED}/{id_}.png": Photo(restored)}
        if std is not None:
            levels = np.clip(np.round(_FINENESS * np.nan_to_num(std)), 0, 65535).astype(np.uint16)
            photos[f"{UNCERTAINTY}/{id_}.png"] = Photo(
                np.repeat(levels[..., None], 3, -1), grey=True
            )
        for name, photo in photos.items():
            write_photo(self.folder / name, photo)
        files = {name: _digest(self.folder / name) for name in photos}
        record = {"id": id_, "digest": digest, "files": files, **with_infinite(values)}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self._lines[id_] = record
        return record

    def _discard(self) -> None:
        """Removes what this evaluation wrote, and nothing else."""
        for record in self._lines.values():
            for name in record["files"]:
                (self.folder / name).unlink(missing_ok=True)
        self._lines = {}


def levels_of(uncertainty: np.ndarray) -> np.ndarray:
    """Standard deviation in levels of 255, float32 [H, W], of a written uncertainty map."""
    return uncertainty[..., 0].astype(np.float32) / _FINENESS


def plain(values: Mapping[str, Any]) -> Record:
    """`values` for JSON, which has neither NaN nor infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def with_infinite(values: Mapping[str, Any]) -> Record:
    """`plain`, with the names of what is infinite, as the PSNR of a picture that equals its ground
    truth."""
    infinite = [key for key, value in values.items() if value == math.inf]
    return plain(values) | ({"infinite": infinite} if infinite else {})


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    def problem(e: Any) -> str:
        return (
            f"{e.filename or path}: cannot be written ({e.strerror}); mend that and start again: "
            "what is done is kept"
        )

    with errors_as(EvaluationError, problem, OSError):
        yield


def parts_of(folder: Path) -> list[Path]:
    """The records of processes but the first."""
    return sorted(folder.glob("records.*.jsonl"))


def _read(*paths: Path) -> dict[str, Record]:
    """Whole lines, by id; the last one of an id counts."""
    found = {}
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines(keepends=True):
            # a killed process may leave half a line
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                if line.endswith("\n") and record["files"].keys() and record["digest"]:
                    found[record["id"]] = record
    return found


def _line(record: Record) -> str:
    # \u escapes: a line separator within a name must not break the line
    return json.dumps(record) + "\n"


def _compare(path: Path, settings: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(settings))
    try:
        was = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(was, dict):
            raise ValueError("no object")
    except ValueError as e:
        raise EvaluationError(f"{path}: damaged ({e}); give --overwrite to begin again") from e
    changed = [
        f"{key} {json.dumps(was.get(key))}, not {json.dumps(now.get(key))}"
        for key in {**now, **was}
        if was.get(key) != now.get(key)
    ]
    if changed:
        raise EvaluationError(
            f"{path.parent}: holds an evaluation with other settings: {'; '.join(changed)}. Choose "
            "another --out, or give --overwrite to begin again"
        )


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return None
