"""Training on several devices and in several processes equals training on one."""

import functools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training
from jax.sharding import PartitionSpec

from zmar_jax.kernels import conv1
from zmar_jax.runtime import sharding
from zmar_jax.train import compile_steps
from zmar_jax.train.state import create_sharded_state

HERE = Path(__file__).parent
STEPS = 5


def check(first: Any, losses: Any) -> None:
    """Against one device: parameters after the actnorm initialisation, and losses."""
    cfg = training.config()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        first,
        training.initialised(cfg).params,
    )
    expected = [metrics["loss"] for metrics in training.trained(cfg, STEPS)[1]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_four_devices() -> None:
    first, state, losses = training.trained_on(sharding.make_mesh(), training.config(), STEPS)
    check(first, losses)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert len(state.step.devices()) == 4


@pytest.mark.slow
def test_four_devices_and_a_reversible_flow() -> None:
    cfg = training.config(remat="reversible")
    first, state, losses = training.trained_on(sharding.make_mesh(), cfg, STEPS)
    check(first, losses)
    expected = training.trained(training.config(), STEPS)[0].opt_state
    moments, wanted = (optax.tree.get(s, "mu") for s in (state.opt_state, expected))
    assert training.apart(moments, wanted) < 1e-3


@pytest.mark.slow
def test_parameters_split_over_devices() -> None:
    first, state, losses = training.trained_on(sharding.make_mesh(2), training.config(), STEPS)
    check(first, losses)
    whole = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.opt_state)))
    mine = sum(
        leaf.addressable_shards[0].data.size
        for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
    assert mine < 1.1 * whole / 2


@pytest.mark.slow
def test_how_parameters_lie_does_not_split_the_backward_pass() -> None:
    """Each is gathered once, and each gradient summed whole: over processes of CPUs the exchanges
    of a backward pass that was split as the optimizer lies got into each other."""
    mesh = sharding.make_mesh(4)
    state = create_sharded_state(training.config(), training.KEY, mesh)
    batch = sharding.shard_batch(training.arrays(training.batch(0)), mesh)
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    assert split > 100
    whole, mine = (
        sum(size(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state)))
        for size in (lambda leaf: leaf.nbytes, lambda leaf: leaf.addressable_shards[0].data.nbytes)
    )
    assert mine < 1.1 * whole / 4
    for program in compile_steps(state, mesh):
        compiled = program.compile(state, batch, training.KEY)
        text = compiled.as_text()
        assert not re.search(r" (collective-permute|all-to-all)\(", text)
        assert len(re.findall(r" all-gather\(", text)) < split + 10
        held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.ema, batch))) / 4
        counted = compiled.memory_analysis()
        for size in (counted.argument_size_in_bytes, counted.output_size_in_bytes):
            assert size < 1.1 * (mine + held)  # of one device


def worker(out: Path, devices: int, fsdp: int, *joined: str) -> subprocess.Popen[str]:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.Popen(
        [sys.executable, str(HERE / "train_worker.py"), str(out), str(fsdp), *joined],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(out: Path, *workers: subprocess.Popen[str]) -> None:
    """Waits for all workers, and checks what they wrote."""
    errors = [process.communicate(timeout=500)[1] for process in workers]
    assert all(process.returncode == 0 for process in workers), "\n".join(errors)
    with np.load(out) as found:
        leaves = [found[f"arr_{i}"] for i in range(len(found.files) - 2)]
        assert found["devices"] == (8 if len(workers) == 1 else 4)
        first = jax.tree.unflatten(jax.tree.structure(training.params()), leaves)
        check(first, found["losses"])


@pytest.mark.slow
def test_eight_devices(tmp_path: Path) -> None:
    out = tmp_path / "run.npz"
    outcome(out, worker(out, 8, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "fsdp"), [(2, 1), (4, 4)])
def test_processes_that_share_four_devices(processes: int, fsdp: int, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    out = tmp_path / "run.npz"
    count, devices = str(processes), 4 // processes
    outcome(out, *[worker(out, devices, fsdp, address, count, str(i)) for i in range(processes)])


def test_mesh() -> None:
    assert sharding.make_mesh().shape == {"data": 4, "fsdp": 1}
    assert sharding.make_mesh(2).shape == {"data": 2, "fsdp": 2}
    with pytest.raises(
        ValueError, match=r"train\.fsdp must divide the number of devices, 4, got 3"
    ):
        sharding.make_mesh(3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), ()),
        ((3,), ()),
        ((3, 3, 1, 5), ()),
        ((4,), ("fsdp",)),
        ((6, 3, 64, 24), (None, None, "fsdp")),
        ((12, 7), ("fsdp",)),
        ((3, 3, 288, 12, 128), (None, None, "fsdp")),
    ],
)
def test_parameters_are_split_along_their_largest_axis(
    shape: tuple[int, ...], spec: tuple[Any, ...]
) -> None:
    tree = {"leaf": jax.ShapeDtypeStruct(shape, jnp.float32)}
    split = sharding.tree_shardings(tree, sharding.make_mesh(2))["leaf"]
    assert split.spec == PartitionSpec(*spec)
    whole = sharding.tree_shardings(tree, sharding.make_mesh())["leaf"]
    assert whole.is_fully_replicated


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_batch_is_split_over_all_devices(fsdp: int) -> None:
    batch = training.batch(0)
    found = sharding.shard_batch(batch, sharding.make_mesh(fsdp))
    assert found.keys() == {"low", "gt"}
    assert found["low"].dtype == np.uint8
    for key, array in found.items():
        np.testing.assert_array_equal(array, batch[key])
        assert {shard.data.shape for shard in array.addressable_shards} == {(2, 16, 16, 3)}


def test_batch_that_does_not_divide() -> None:
    mesh = sharding.make_mesh(2)
    sharding.check_batch(8, 2, mesh)
    expected = (
        r"data\.batch_size must be a multiple of 8 \(4 devices x train\.accumulate 2\), got 12"
    )
    with pytest.raises(ValueError, match=expected):
        sharding.check_batch(12, 2, mesh)


def test_alone_where_nobody_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(heartbeat_timeout_seconds: int) -> None:
        assert heartbeat_timeout_seconds == sharding.HEARTBEAT
        raise ValueError("coordinator_address should be defined.")

    sharding.initialize_distributed()  # on a CPU that has been computing: JAX itself refuses
    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    sharding.initialize_distributed()


def test_others_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    def unlabelled(**options: Any) -> None:
        raise RuntimeError("pod a-1 does not have a controller.")

    monkeypatch.setattr(jax.distributed, "initialize", unlabelled)
    with pytest.raises(
        ValueError, match=r"a-1 does not have a controller\. To go on with this one"
    ):
        sharding.initialize_distributed()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("host:1", None, None), "expected coordinator, num_processes and process_id together"),
        ((None, 2, 0), "or none of them, got None, 2, 0"),
        (
            ("host:1", 2, 2),
            "from 0 to num_processes - 1, got host:1, process_id 2, num_processes 2",
        ),
        (("host", 2, 0), "expected coordinator as host:port"),
    ],
)
def test_impossible_processes(arguments: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        sharding.initialize_distributed(*arguments)


def test_constrain_needs_no_mesh() -> None:
    x = jnp.ones(4)
    assert sharding.constrain(x, sharding.BATCH) is x
    mesh = sharding.make_mesh()
    constrained = sharding.jit(lambda x: sharding.constrain(x, sharding.BATCH), mesh)(x)
    assert {shard.data.shape for shard in constrained.addressable_shards} == {(1,)}


def test_no_conditional_is_left_where_a_mesh_says_the_platform() -> None:
    """Collectives in them ran into each other on four devices of a CPU, and the process ended."""
    x, kernel = jnp.ones((4, 3, 3, 8)), jnp.ones((8, 8))
    gradient = jax.make_jaxpr(jax.grad(lambda x, kernel: conv1(x, kernel).sum(), (0, 1)))
    with jax.set_mesh(sharding.make_mesh()):
        assert "platform_index" not in str(gradient(x, kernel))
    assert "platform_index" in str(gradient(x, kernel))
    package = HERE.parent / "zmar_jax"
    users = [p.name for p in package.rglob("*.py") if "platform_dependent(" in p.read_text()]
    assert users == ["ops.py"]
