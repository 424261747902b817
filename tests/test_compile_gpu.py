"""Compiling for GPUs that are not there, and reading what was compiled."""

import importlib.metadata
import json

import jax
import jax.numpy as jnp
import pytest
from test_compile import NANO

from zmar_jax import cli
from zmar_jax.benchmark import chips, topology
from zmar_jax.benchmark import compile as benchmark
from zmar_jax.benchmark.hlo import Collective, read_program
from zmar_jax.benchmark.kernels import Kernels
from zmar_jax.benchmark.restore import random_restorer
from zmar_jax.config import Config, ConfigError, ModelConfig, override
from zmar_jax.models import ZmarSNFlow, param_shapes
from zmar_jax.restore.programs import make_programs
from zmar_jax.runtime import compilation, sharding
from zmar_jax.train import compile_steps
from zmar_jax.train.state import abstract_state
from zmar_jax.train.step import health

needs_cuda = pytest.mark.skipif(
    not topology.installed("cuda"), reason="JAX's plugin for CUDA is not installed (extra cuda)"
)
GPUS = [name for name, chip in chips.CHIPS.items() if isinstance(chip, chips.Gpu)]


def costs(sol: float, fused: float | None = None) -> str:
    """As XLA writes its two estimates, microseconds."""
    one = '{"end_to_end_cycles":1.5,"exec_time_us":%s,"compute_time_us":0,"name":"%s"}'
    found = ([one % (fused, "")] if fused is not None else []) + [one % (sol, "sol")]
    return f'"reification_cost":[{",".join(found)}],"device_type":"DEVICE_TYPE_INVALID"'


PROGRAM = f"""HloModule jit_f, is_scheduled=true

%product (p.0: bf16[1024,64], p.1: bf16[64,64]) -> bf16[1024,64] {{
  %p.0 = bf16[1024,64]{{1,0}} parameter(0)
  %p.1 = bf16[64,64]{{1,0}} parameter(1)
  ROOT %dot.2 = bf16[1024,64]{{1,0}} dot(%p.0, %p.1), lhs_contracting_dims={{1}}
}}

%next (p.2: s32[]) -> s32[] {{
  %p.2 = s32[] parameter(0), metadata={{scheduling_name="p.2"}}
  %one = s32[] constant(1)
  ROOT %add.4 = s32[] add(%p.2, %one)
}}

%cut (p.3: f32[3,8,8], p.4: s32[]) -> f32[1,8,8] {{
  %p.3 = f32[3,8,8]{{2,1,0}} parameter(0)
  %p.4 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,8]{{2,1,0}} dynamic-slice(%p.3, %p.4, %zero, %zero)
  ROOT %copy.3 = f32[1,8,8]{{2,1,0}} copy(%slice)
}}

%body (s: (s32[], bf16[1024,64], bf16[64,64], f32[3,8,8])) -> (s32[], bf16[1024,64], \
bf16[64,64], f32[3,8,8]) {{
  %s = (s32[], bf16[1024,64]{{1,0}}, bf16[64,64]{{1,0}}, f32[3,8,8]{{2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[1024,64]{{1,0}} get-tuple-element(%s), index=1
  %w = bf16[64,64]{{1,0}} get-tuple-element(%s), index=2
  %all = f32[3,8,8]{{2,1,0}} get-tuple-element(%s), index=3
  %loop_add = s32[] fusion(%i), kind=kLoop, calls=%next, backend_config={{{costs(0.25, 0.5)}}}
  %one = f32[1,8,8]{{2,1,0}} fusion(%all, %i), kind=kCustom, calls=%cut, backend_config=\
{{"fusion_backend_config":{{"kind":"__custom_fusion","custom_fusion_config":\
{{"name":"dynamic_slice_fusion","kernel_index":0}}}},{costs(0.125)}}}
  %y = bf16[1024,64]{{1,0}} fusion(%x, %w), kind=kCustom, calls=%product, backend_config=\
{{"fusion_backend_config":{{"kind":"__triton_nested_gemm_fusion"}},{costs(9, 2)}}}
  ROOT %t = (s32[], bf16[1024,64]{{1,0}}, bf16[64,64]{{1,0}}, f32[3,8,8]{{2,1,0}}) \
tuple(%loop_add, %y, %w, %all)
}}

%less (p.5: s32[]) -> pred[] {{
  %p.5 = s32[] parameter(0)
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%p.5, %bound), direction=LT
}}

%condition (s.1: (s32[], bf16[1024,64], bf16[64,64], f32[3,8,8])) -> pred[] {{
  %s.1 = (s32[], bf16[1024,64]{{1,0}}, bf16[64,64]{{1,0}}, f32[3,8,8]{{2,1,0}}) parameter(0)
  %j = s32[] get-tuple-element(%s.1), index=0
  ROOT %go_on = pred[] fusion(%j), kind=kLoop, calls=%less
}}

ENTRY %main (x.1: bf16[1,32,32,64], k.1: bf16[64,3,3,64], w.1: bf16[64,64], a: f32[3,8,8]) -> \
bf16[1024,64] {{
  %x.1 = bf16[1,32,32,64]{{3,2,1,0}} parameter(0)
  %k.1 = bf16[64,3,3,64]{{3,2,1,0}} parameter(1)
  %w.1 = bf16[64,64]{{1,0}} parameter(2)
  %a = f32[3,8,8]{{2,1,0}} parameter(3)
  %zero.1 = s32[] constant(0)
  %conv = (bf16[1,32,32,64]{{3,2,1,0}}, u8[4096]{{0}}) custom-call(%x.1, %k.1), \
custom_call_target="__cudnn$convForward", backend_config={{"reification_cost":[]}}
  %convolved = bf16[1,32,32,64]{{3,2,1,0}} get-tuple-element(%conv), index=0
  %flat = bf16[1024,64]{{1,0}} bitcast(%convolved)
  %matmul = (bf16[1024,64]{{1,0}}, s8[33554432]{{0}}) custom-call(%flat, %w.1), \
custom_call_target="__cublas$lt$matmul", backend_config={{{costs(0.75)}}}
  %y.1 = bf16[1024,64]{{1,0}} get-tuple-element(%matmul), index=0
  %init = (s32[], bf16[1024,64]{{1,0}}, bf16[64,64]{{1,0}}, f32[3,8,8]{{2,1,0}}) \
tuple(%zero.1, %y.1, %w.1, %a)
  %loop = (s32[], bf16[1024,64]{{1,0}}, bf16[64,64]{{1,0}}, f32[3,8,8]{{2,1,0}}) while(%init), \
condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  ROOT %out = bf16[1024,64]{{1,0}} get-tuple-element(%loop), index=1
}}
"""


def test_kernels_are_told_apart_and_scratch_is_no_traffic():
    picture, kernel, weights, cut = 2 * 1024 * 64, 2 * 64 * 9 * 64, 2 * 64 * 64, 4 * 64
    found = {kernels.kind: kernels for kernels in read_program(PROGRAM).kernels}
    expected = (
        Kernels("Triton", 5, 5 * (2 * picture + weights), pytest.approx(5 * 2e-6), 0),
        Kernels("cuDNN", 1, 2 * picture + kernel, 0.0, 1),
        Kernels("cuBLAS", 1, 2 * picture + weights, pytest.approx(0.75e-6), 0),
        Kernels("copy", 5, 5 * (2 * cut + 4), pytest.approx(5 * 0.125e-6), 0),
        Kernels("loop", 5, 5 * 8, pytest.approx(5 * 0.5e-6), 0),
    )
    assert found == {kernels.kind: kernels for kernels in expected}


def test_the_whole_is_the_sum_of_its_kernels():
    program = read_program(PROGRAM)
    assert program.traffic == sum(kernels.traffic for kernels in program.kernels)
    assert [k.traffic for k in program.kernels] == sorted(
        (k.traffic for k in program.kernels), reverse=True
    )
    assert program.cycles == 0


def test_clocks_and_costs_follow_from_peaks():
    clocks = {name: chips.CHIPS[name].clock / 1e9 for name in GPUS}
    assert clocks == pytest.approx({"h100": 1.98, "h200": 1.98, "a100": 1.41}, rel=0.01)
    assert chips.CHIPS["a100"].float32_cost == pytest.approx(16)
    assert {chips.CHIPS[name].float32_cost for name in ("v5e", "v6e")} == {6}


def test_one_gpu_needs_no_number():
    one, host = map(topology.parse_slice, ("h100", "h100:8"))
    assert (one.name, one.chips, one.all_reduce_seconds(1e9)) == ("h100:1", 1, 0)
    assert host.all_reduce_seconds(8e9) == pytest.approx(2 * 7 / 8 * 8e9 / 450e9)


def test_without_the_plugin_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    assert cli.main(["compile", "--topology", "h100"]) == 1
    assert "pip install 'zmar-jax[cuda]'" in capsys.readouterr().err


def test_an_option_that_this_xla_has_not_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "known", lambda name, value: "triton" not in name)
    assert set(compilation.gpu_options(9, triton=False)) == {
        *("xla_gpu_autotune_level", "xla_gpu_collect_cost_model_stats", "xla_disable_hlo_passes")
    }


def test_a_product_that_triton_does_not_take_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes that satisfy x")

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = sharding.Program(None, mesh)
    monkeypatch.setattr(benchmark, "devices", lambda target: list(mesh.devices.flat))
    monkeypatch.setattr(benchmark, "_inverse", lambda config, mesh: (None, program, ()))
    monkeypatch.setattr(benchmark, "matrix_multiply_adds", lambda *args, **kwargs: (0, 0))
    monkeypatch.setattr(sharding.Program, "compile", refuse)
    config = override(Config(), ["data.batch_size=2"])
    with pytest.raises(ConfigError, match=r"sizes that satisfy x.*say --no-triton"):
        benchmark.compile_for("inverse", config, topology.parse_slice("h100"))


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_each_gpu_can_be_described(name):
    devices = topology.devices(topology.parse_slice(f"{name}:2"))
    assert all(device.platform == "gpu" for device in devices)
    assert all(name.upper() in device.device_kind for device in devices)
    mesh = sharding.make_mesh(devices=devices)
    split, whole = (jax.NamedSharding(mesh, s) for s in (sharding.BATCH, sharding.REPLICATED))
    x = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32, sharding=split)
    program = sharding.jit(lambda x: jnp.tanh(x.sum(0)), mesh, out_shardings=whole)
    options = compilation.gpu_options(chips.CHIPS[name].capability)
    found = read_program(program.compile(x, options=options).as_text())
    size = 4 * 64 * 64
    assert found.collectives == (Collective("all-reduce", 1, size),)
    # two matrices are summed, the sums are added up, and the tangent is taken
    assert found.traffic == (2 + 1) * size + 2 * size + 2 * size
    loops = next(kernels for kernels in found.kernels if kernels.kind == "loop")
    assert (loops.count, loops.unestimated) == (2, 0)


def compiled_by_the_command(capsys, *options: str) -> dict:
    sizes = ["--batch", "2", "--crop", "16", "--json"]
    assert cli.main(["compile", "--topology", "h100", *sizes, *options, *NANO]) == 0
    return json.loads(capsys.readouterr().out)


@needs_cuda
@pytest.mark.slow
def test_the_training_step_compiles_for_a_gpu(capsys):
    found = compiled_by_the_command(capsys, "--only", "train")
    assert found["remark"] == "compiled for a GPU, not measured"
    assert (found["effort"], found["triton"], found["collectives"]) == (0, True, [])
    assert 0 < found["hbm"] < 1e9
    assert found["hbm"] + found["hbm_free"] == 84942979072
    kernels = {kernels["kind"]: kernels for kernels in found["kernels"]}
    assert {"loop", "Triton", "cuDNN", "cuSOLVER"} <= set(kernels)
    assert sum(k["traffic"] for k in kernels.values()) == found["hbm_traffic"]
    assert 0 < found["estimated_seconds"] < 0.1
    assert kernels["loop"]["unestimated"] == 0


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("triton", ["triton", "no-triton"])
def test_inverse_compiles_with_and_without_triton(triton, capsys):
    found = compiled_by_the_command(capsys, "--only", "inverse", f"--{triton}")
    kinds = {kernels["kind"] for kernels in found["kernels"]}
    assert ("Triton" in kinds) == (triton == "triton")
    assert ("cuBLAS" in kinds) == (triton == "no-triton")


PROGRAMS = {
    "init": ("float32", "none"),
    "train none": ("float32", "none"),
    "train reversible": ("float32", "reversible"),
    "train bfloat16": ("bfloat16", "blocks"),
    "health": ("float32", "none"),
    "restore": ("float32", "none"),
    "restore in stripes": ("bfloat16", "none"),
    "likelihood": ("bfloat16", "none"),
}


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("triton", [True, False], ids=["triton", "no triton"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_compiles(name, triton, monkeypatch):
    policy, remat = PROGRAMS[name]
    settings = [f"model.policy={policy}", f"train.remat={remat}", "train.weight_l1=1"]
    config = override(Config(), [*NANO, *settings, "data.crop=16", "data.batch_size=2"])
    mesh = sharding.make_mesh(devices=topology.devices(topology.parse_slice("h100")))
    options = compilation.gpu_options(9, triton)
    # programs for one device that is there take its options, which is a CPU here
    monkeypatch.setattr(compilation, "cpu_options", dict)
    for program, args in programs(name, config, mesh):
        args = jax.tree.map(lambda leaf: placed(leaf, mesh), args)
        with jax.set_mesh(mesh):
            compiled = program.lower(*args).compile(compiler_options=options)
        kinds = {kernels.kind for kernels in read_program(compiled.as_text()).kernels}
        assert triton or "Triton" not in kinds


def programs(name: str, config: Config, mesh) -> list[tuple]:
    """Jitted functions, and arguments for them."""
    model, crop = config.model, config.data.crop
    state, key = abstract_state(config, mesh), jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, crop, crop, 3), jnp.uint8)
    params = param_shapes(model)
    if name in ("init", "health") or name.startswith("train"):
        init, train = compile_steps(state, mesh)
        if name == "health":
            return [(jax.jit(health), (params,))]
        program = init if name == "init" else train
        return [(program.jitted, (state, {"low": image, "gt": image}, key))]
    if name == "likelihood":
        return [likelihood(model, params, crop)]
    encode, decode = restoring(model, 1 << 12 if "stripes" in name else None)
    variables = random_restorer(model).variables
    features = jax.eval_shape(encode, variables, image)
    z = jax.ShapeDtypeStruct((2, *model.latent_shape(crop, crop)), jnp.float32)
    return [(encode, (variables, image)), (decode, (variables, z, features))]


def restoring(model: ModelConfig, stripe_bytes: int | None) -> tuple:
    programs = make_programs(model, stripe_bytes)
    return programs.encode, programs.decode


def likelihood(config: ModelConfig, params, crop: int) -> tuple:
    model = ZmarSNFlow(config)
    gt, lr, mask = (jax.ShapeDtypeStruct((2, crop, crop, c), jnp.float32) for c in (3, 3, 1))
    program = jax.jit(lambda p, *args: model.apply({"params": p}, *args, method="nll"))
    return program, (params, gt, lr, mask, gt)


def placed(leaf, mesh):
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
        return leaf
    whole = jax.NamedSharding(mesh, sharding.REPLICATED)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
