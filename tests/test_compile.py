"""Compiling for TPU slices that are not there, and reading what was compiled."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
import training

from zmar_jax import cli
from zmar_jax.benchmark import compile as benchmark
from zmar_jax.benchmark import cost, topology
from zmar_jax.benchmark.chips import CHIPS, Tpu
from zmar_jax.benchmark.hlo import Collective, read_program
from zmar_jax.config import Config, ConfigError, override
from zmar_jax.kernels import conv3
from zmar_jax.models import param_shapes
from zmar_jax.runtime import compilation, sharding

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (extra tpu)",
)
NANO = ["model.dim=2", "model.blocks=[1,1,1,1]", "model.refinement_blocks=1"]
NANO += ["model.heads=[1,1,1,1]", "model.flow_additional_steps=1", "model.flow_steps=3"]
NANO += ["model.flow_hidden=4"]

PROGRAM = """HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%sliced (p.0: f32[5,8,128], p.1: s32[]) -> f32[8,128] {
  %p.0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero)
  ROOT %out = f32[8,128]{1,0:T(8,128)} bitcast(%cut)
}

%body (state: (s32[], f32[8,128], f32[5,8,128])) -> (s32[], f32[8,128], f32[5,8,128]) {
  %state = (s32[], f32[8,128]{1,0:T(8,128)}, /*index=2*/f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %all = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %one = f32[8,128]{1,0:T(8,128)} fusion(%all, %i), kind=kLoop, calls=%sliced, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %total = f32[8,128]{1,0:T(8,128)} all-reduce(%one), replica_groups={}, to_apply=%sum
  %next = s32[]{:T(128)} constant(1)
  ROOT %new = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) tuple(%next, %total, %all)
}

%cond (state.1: (s32[], f32[8,128], f32[5,8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %state.1 = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (x: f32[3,6], w: f32[5,8,128]) -> f32[8,128] {
  %x = f32[3,6]{1,0:T(8,128)} parameter(0)
  %w = f32[5,8,128]{2,1,0:T(8,128)} parameter(1)
  %fast = f32[3,6]{1,0:T(8,128)S(1)} copy(%x), backend_config={"estimated_cycles":"7"}
  %init = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) tuple(%x, %x, %w)
  %loop = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) while(%init), condition=%cond, body=%body
  ROOT %y = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


SLICED = "dynamic-slice(%p.0, %p.1, %zero, %zero)"
RESHAPED = "dynamic-slice(%again, %p.1, %zero, %zero)\n  %again = f32[5,8,128]{2,1,0} bitcast(%p.0)"


@pytest.mark.parametrize("cut", [SLICED, RESHAPED])
def test_loops_count_as_often_as_they_turn(cut):
    tile = 8 * 128 * 4
    found = read_program(PROGRAM.replace(SLICED, cut))
    assert found.collectives == (Collective("all-reduce", 5, 5 * tile),)
    assert found.cycles == 5 * 100 + 7
    # 3 x 6 floats fill one tile; the copy's result is on the chip; a turn reads one slice of five,
    # writes it, and the collective reads and writes it
    assert found.traffic == tile + 5 * (4 * tile)


UPDATED = """HloModule step

%put (p.0: f32[5,8,128], p.1: s32[], p.2: f32[1,8,128]) -> f32[40,128] {
  %p.0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %p.2 = f32[1,8,128]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %new = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.0, %p.2, %p.1, %zero, %zero)
  ROOT %out = f32[40,128]{1,0:T(8,128)} bitcast(%new)
}

ENTRY %main (all: f32[5,8,128], i: s32[], one: f32[1,8,128]) -> f32[40,128] {
  %all = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %one = f32[1,8,128]{2,1,0:T(8,128)} parameter(2)
  ROOT %y = f32[40,128]{1,0:T(8,128)} fusion(%all, %i, %one), kind=kLoop, calls=%put
}
"""


def test_an_update_in_place_moves_the_update_alone():
    assert read_program(UPDATED).traffic == 2 * (8 * 128 * 4)


def test_a_loop_without_a_bound_is_an_error():
    with pytest.raises(ValueError, match="how often the loop loop turns"):
        read_program(
            PROGRAM.replace("%bound = s32[]{:T(128)} constant(5)", "%bound = f32[] iota()")
        )


def test_an_unknown_topology_names_the_nearest(capsys):
    assert cli.main(["compile", "--topology", "v5e:2x5"]) == 1
    message = capsys.readouterr().err
    assert "nearest: v5e:2x4" in message
    assert "v5p:4x4x8" in message


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["compile", "--topology", "v5e:2x4"]) == 1
    assert "pip install 'zmar-jax[tpu]'" in capsys.readouterr().err


def test_all_reduce_time_is_bound_by_the_worst_placed_chip():
    one, corner, ring = map(topology.parse_slice, ("v5e:1x1", "v5e:2x4", "v5e:16x16"))
    assert one.all_reduce_seconds(1e9) == 0
    assert corner.injection == 2 * 50e9
    assert ring.injection == 4 * 50e9
    assert corner.all_reduce_seconds(8e9) == pytest.approx(2 * 7 / 8 * 8e9 / 100e9)


def test_clocks_follow_from_peaks():
    tpus = (chip for chip in CHIPS.values() if isinstance(chip, Tpu))
    clocks = {chip.name: chip.clock / 1e9 for chip in tpus}
    assert clocks == pytest.approx({"v4": 1.05, "v5e": 1.50, "v5p": 1.75, "v6e": 1.75}, rel=0.01)


def test_costs_count_platform_forms_once():
    x, kernel = jnp.zeros((1, 40, 30, 16)), jnp.zeros((3, 3, 16, 5))
    forward = 1200 * 9 * 16 * 5
    assert cost.matrix_multiply_adds(conv3, x, kernel) == (forward, 6 * forward)
    assert cost.matrix_multiply_adds(conv3, x, kernel, float32_cost=1.5)[1] == 1.5 * forward
    gradient = jax.grad(lambda x, kernel: conv3(x, kernel).sum(), (0, 1))
    assert cost.matrix_multiply_adds(gradient, x, kernel)[0] == 3 * forward


@pytest.mark.slow
@needs_libtpu
def test_the_training_step_compiles_for_a_tpu(capsys):
    options = ["--topology", "v5e:2x2", "--batch", "4", "--crop", "16", "--only", "train", "--json"]
    assert cli.main(["compile", *options, *NANO]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["remark"] == "compiled for a TPU, not measured"
    assert (found["chips"], found["batch_size"], found["policy"]) == (4, 4, "float32")
    assert 0 < found["hbm"] < 1e9
    assert found["hbm"] + found["hbm_free"] == 16 * 2**30
    assert found["flops"] > 0
    assert found["estimated_seconds"] > 0
    (reduced,) = found["collectives"]
    # all gradients, those of flow and encoder as often as there are steps and blocks, and once
    shapes = jax.tree.leaves(param_shapes(override(Config(), NANO).model))
    params = 4 * sum(leaf.size for leaf in shapes)
    assert reduced["kind"] == "all-reduce"
    assert params < reduced["size"] < 20 * params
    bounds = [found[f"{name}_seconds"] for name in ("compute", "memory", "collective")]
    assert found["seconds"] == max(bounds)
    assert found["images_per_second"] == pytest.approx(4 / max(bounds))


@needs_libtpu
def test_a_batch_that_the_chips_do_not_divide(capsys):
    assert cli.main(["compile", "--topology", "v5e:2x4", "--batch", "12", *NANO]) == 1
    assert "multiple of 8" in capsys.readouterr().err


@needs_libtpu
def test_no_cpu_options_for_a_tpu(monkeypatch):
    monkeypatch.setattr(compilation, "cpu_options", lambda: pytest.fail("CPU's options asked for"))
    mesh = sharding.make_mesh(1, topology.devices(topology.parse_slice("v5e:2x2")))
    sharding.jit(lambda x: x, mesh)


MORE = "more than there is"
SEARCHES = [
    (memory, limit, first)
    for memory in ("grows", "held down", MORE)
    for limit, first in ((37, 8), (16, 8), (8, 8), (9, 8), (100, 1), (5, 8), (1, 8), (0, 1))
    if first <= limit or memory == MORE  # else the first batch does not compile
]


@pytest.mark.parametrize(("memory", "limit", "first"), SEARCHES)
def test_the_largest_batch_is_found(monkeypatch, limit, first, memory):
    """Memory grows with the batch, or XLA holds it down; each device takes `limit` images."""
    target = topology.parse_slice("v5e:2x2")
    tried = []

    def compile_for(task, config, target, effort=0.0, triton=True):
        each = config.data.batch_size // 4
        tried.append(each)
        if each > limit and memory != MORE:
            raise benchmark.TooLarge("Used 17G of 15.75G hbm")
        free = 0 if each == limit else int(2**28 * (limit - each + 0.4))
        free = 2**30 if memory == "held down" else free
        return dataclasses.replace(blank, hbm=16 * 2**30 - free, hbm_free=free)

    fields = {f.name: 0 for f in dataclasses.fields(benchmark.Compiled)}
    blank = benchmark.Compiled(**fields | {"batch_size": 4 * first})
    config = training.config()
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, batch_size=4 * first)
    )
    monkeypatch.setattr(benchmark, "compile_for", compile_for)
    result = compile_for("train", config, target)
    assert benchmark.largest_batch("train", config, target, result) == 4 * limit
    assert len(tried) < (20 if memory == "held down" else 8)
    assert max(tried) < 3 * limit + 8 * first


def test_no_such_topology_is_a_config_error():
    with pytest.raises(ConfigError, match="nearest: v6e:8x8"):
        topology.parse_slice("v6e:8x9")
