"""A million photographs in shards: training begins as soon as of a few, in as little memory."""

import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from zmar_jax.data.shards import Manifest, Part, Record, Shard, sizes_file

EDGE = 16


def write_set(folder: Path, count: int, per_shard: int = 50_000) -> Path:
    """`count` photographs to train on, of a hundred contents, and a hundred to validate on."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for _ in range(100):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (EDGE, EDGE, 3), np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    splits = {}
    for split, n in (("train", count), ("val", 100)):
        shards = []
        for first in range(0, n, per_shard):
            path = folder / f"{split}-{first // per_shard:05d}.array_record"
            records = min(per_shard, n - first)
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for i in range(first, first + records):
                writer.write(Record(f"{i:07d}", files[i % 100], True).encode())
            writer.close()
            shards.append(Shard(path.name, records, path.stat().st_size, f"{first}"))
        np.save(folder / sizes_file(split), np.full((n, 2), EDGE, np.uint32))
        splits[split] = Part(n, f"{n:016x}", tuple(shards))
    manifest = Manifest("0", "nowhere", EDGE, 0.1, 0, splits)
    (folder / "shards.json").write_text(manifest.text())
    return folder


def begin(folder: Path) -> tuple[dict, float, float]:
    """What `benchmark data` says of a moment; seconds from command to end, and of CPU."""
    settings = {"folder": folder, "data_dir": folder.parent, "crop": EDGE, "batch_size": 16}
    command = [sys.executable, "-m", "zmar_jax", "benchmark", "data"]
    command += [f"data.{key}={value}" for key, value in settings.items()]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--json"], capture_output=True, text=True, check=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), seconds, cpu


@pytest.mark.slow
def test_a_million_begin_like_a_thousand(tmp_path: Path) -> None:
    few, many = (write_set(tmp_path / str(count), count) for count in (1000, 10**6))
    peaks, times = [], []
    for folder, count in ((few, 1000), (many, 10**6)):
        said, seconds, cpu = begin(folder)
        assert said["pictures"] == count
        assert said["decoded_once"] == (count == 1000)
        times.append(cpu)
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        text = f"{count} pictures: {seconds:.1f} s, {cpu:.1f} s of CPU in all processes"
        print(f"{text}, at most {peaks[-1]:.0f} MiB in one")
    # by the CPU's time, as other work may keep this from it
    assert times[1] < min(times[0] + 5, 30)
    # the order of an epoch, and lists of where records lie
    assert peaks[1] - peaks[0] < 100
