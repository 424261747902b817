"""A run goes on with other numbers of processes and devices: the same batches and losses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chaos_run import SMALL, Layout, arrays, losses, photos, strayed

QUICKLY = """
import sys
from zmar_jax.cli import main
from zmar_jax.runtime import compilation
compilation.LLVM_LEVEL = 0
sys.exit(main(sys.argv[1:]))
"""
SEGMENT = 3
"""Steps between two layouts."""
SETTINGS = ("data.batch_size=8", "train.learning_rate=1e-4", "train.checkpoint_every=100")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run on one device that nothing changed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train(workdir, pictures, Layout(1, 1), 4 * SEGMENT)
    return workdir


def train(workdir: Path, pictures: Path, layout: Layout, steps: int) -> list[str]:
    """Goes on until `steps`; what each process says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = [*SMALL, *SETTINGS, f"train.steps={steps}", f"train.fsdp={layout.fsdp}"]
    settings += [f"data.{name}={pictures}" for name in ("folder", "val_folder")]
    command = ["train", "--config", "tiny", "--workdir", str(workdir), "--accept-changes"]
    joined = ["--coordinator", address, "--processes", str(layout.processes), "--process"]
    flags = f"--xla_force_host_platform_device_count={layout.devices}"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", QUICKLY, *command, *settings),
                *(f"data.data_dir={pictures}.cache", *joined, str(i)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(layout.processes)
    ]
    told = [process.communicate(timeout=1200)[1] for process in processes]
    assert not any(process.returncode for process in processes), told
    return told


CHAINS = [
    (Layout(1, 1), Layout(2, 2, 2), Layout(4, 1, 4), Layout(1, 8)),
    (Layout(1, 8, 8), Layout(2, 1), Layout(4, 2, 4), Layout(1, 4, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize("layouts", CHAINS, ids=lambda chain: " -> ".join(map(str, chain)))
def test_a_run_goes_on_with_another_layout(
    layouts: tuple[Layout, ...], pictures: Path, alone: Path, tmp_path: Path
) -> None:
    for i, layout in enumerate(layouts, 1):
        told = train(tmp_path / "run", pictures, layout, i * SEGMENT)
        count = layout.processes * layout.devices
        assert f"{count} x cpu in {layout.processes} process(es)" in told[0]
    found, expected = (losses(workdir) for workdir in (tmp_path / "run", alone))
    assert found.keys() == expected.keys() == set(range(2, 4 * SEGMENT + 1))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-4), step
    # another batch would show: two steps' losses differ by far more
    assert np.ptp(list(expected.values())) > 1e-2 * np.mean(list(expected.values()))
    last, wanted = (arrays(workdir, 4 * SEGMENT) for workdir in (tmp_path / "run", alone))
    assert last.keys() == wanted.keys()
    assert last["['step']"] == wanted["['step']"] == 4 * SEGMENT
    assert strayed(last, wanted, arrays(alone, 1)) < 0.02
