"""Where a compiled TPU program spends its time, read off its text."""

import concurrent.futures
import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import re

import jax
import pytest
from rich.console import Console

from zmar_jax import cli
from zmar_jax.benchmark import compile as benchmark
from zmar_jax.benchmark import schedule
from zmar_jax.benchmark.breakdown import OUTSIDE, coverage, grouped, pieces, rows
from zmar_jax.benchmark.hlo import read_program
from zmar_jax.benchmark.kept import kept
from zmar_jax.benchmark.topology import devices, parse_slice
from zmar_jax.cli.breakdown import tables
from zmar_jax.config import Config
from zmar_jax.runtime import compilation, sharding

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (extra tpu)",
)
NANO = ["model.dim=2", "model.blocks=[1,1,1,1]", "model.refinement_blocks=1"]
NANO += ["model.heads=[1,1,1,1]", "model.flow_additional_steps=1", "model.flow_steps=3"]
NANO += ["model.flow_hidden=4", "train.remat=blocks"]

STAGE = "jit(train_step)/transpose(jvp(ZmarSNFlow.features))/encoder/latent/while"
BLOCK = f"{STAGE}/body/closed_call/checkpoint"
FLOW = "jit(train_step)/jvp(ZmarSNFlow.nll)/ZmarSNFlow._flow/flow.forward/level1.forward"


def _cycles(estimated: int, scheduled: int | None = None) -> str:
    count = f',"bundle_analysis_data":{{"estimated_cycles":"{scheduled}","flops":"0"}}'
    window = f'{{"window_config":{{"estimated_cycles":"{estimated}"}}'
    return f"backend_config={window}{'' if scheduled is None else count}}}"


# what libtpu 0.0.42.1 writes for v5e, cut down: names, attributes and layouts as there
PROGRAM = f"""HloModule jit_train_step, is_scheduled=true

%fused_products (p.0: bf16[8,160,48], p.1: bf16[48,96]) -> bf16[8,160,96] {{
  %p.0 = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %p.1 = bf16[48,96]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %product = bf16[8,160,96]{{2,1,0:T(8,128)(2,1)}} convolution(%p.0, %p.1), \
dim_labels=0bf_io->0bf
}}

%fused_sums (q.0: bf16[8,160,96]) -> f32[8,160] {{
  %q.0 = bf16[8,160,96]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %wide = f32[8,160,96]{{2,1,0:T(8,128)}} convert(%q.0), \
metadata={{op_name="{BLOCK}/blocks/norm1/mul"}}
  %zero = f32[]{{:T(128)}} constant(0)
  ROOT %sum = f32[8,160]{{1,0:T(8,128)}} reduce(%wide, %zero), dimensions={{2}}, to_apply=%add
}}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %total = f32[] add(%a, %b)
}}

%body (state: (s32[], bf16[8,160,48])) -> (s32[], bf16[8,160,48]) {{
  %state = (s32[], bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}) parameter(0)
  %i = s32[]{{:T(128)S(6)}} get-tuple-element(%state), index=0
  %x = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%state), index=1
  %w = bf16[48,96]{{1,0:T(8,128)(2,1)}} constant({{...}})
  %wide.1 = bf16[8,160,96]{{2,1,0:T(8,128)(2,1)}} fusion(%x, %w), kind=kOutput, \
calls=%fused_products, metadata={{op_name="{BLOCK}/rematted_computation/blocks/blocks._feed/ffn/\
dot_general" stack_frame_id=1}}, {_cycles(1000, 700)}
  %sums.1 = f32[8,160]{{1,0:T(8,128)}} fusion(%wide.1), kind=kLoop, calls=%fused_sums, \
metadata={{op_name="reduce_sum"}}, {_cycles(500, 0)}
  %gates = f32[8,160]{{1,0:T(8,128)}} exponential(%sums.1), \
metadata={{op_name="checkpoint/blocks/attn.sums/attn._features/cond/branch_0_fun/exp"}}, \
{_cycles(30)}
  %moved = bf16[8,160,48]{{1,2,0:T(8,128)(2,1)}} copy(%x), {_cycles(20, 40)}
  %kernel = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} custom-call(%moved), \
custom_call_target="tpu_custom_call", metadata={{op_name="{BLOCK}/blocks/blocks._feed/ffn/gate/\
pallas_call"}}, backend_config={{"bundle_analysis_data":{{"estimated_cycles":"900"}}}}
  ROOT %new = (s32[], bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}) tuple(%i, %kernel)
}}

%cond (state.1: (s32[], bf16[8,160,48])) -> pred[] {{
  %state.1 = (s32[], bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}) parameter(0)
  %bound = s32[]{{:T(128)}} constant(4)
  %j = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%j, %bound), direction=LT
}}

ENTRY %main (x.1: bf16[8,160,48]) -> bf16[8,160,48] {{
  %x.1 = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %zero.1 = s32[]{{:T(128)}} constant(0)
  %cut = ((bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}), bf16[2,160,48]{{2,1,0:T(8,128)(2,1)S(1)}}, \
s32[]{{:S(2)}}) slice-start(%x.1), slice={{[0:2], [0:160], [0:48]}}
  %part = bf16[2,160,48]{{2,1,0:T(8,128)(2,1)S(1)}} slice-done(%cut)
  %init = (s32[], bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}) tuple(%zero.1, %x.1)
  %loop = (s32[], bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}}) while(%init), condition=%cond, \
body=%body, metadata={{op_name="{STAGE}"}}
  %z = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%loop), index=1
  %scaled = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} multiply(%z, %z), \
metadata={{op_name="{FLOW}/conditional.forward/while/body/step.forward/\
invconv.forward_rows/mul"}}, \
{_cycles(7)}
  %reduced = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} all-reduce(%scaled), replica_groups={{}}, \
to_apply=%add
  ROOT %rate = bf16[8,160,48]{{2,1,0:T(8,128)(2,1)}} multiply(%reduced, %reduced), \
metadata={{op_name="jit(train_step)/mul"}}, {_cycles(3)}
}}
"""

EXPECTED = {
    "wide.1": ("encoder/latent/blocks/ffn", "recomputed", "products", 4, 1000, 700),
    # the path of what is fused, as its own has none
    "sums.1": ("encoder/latent/blocks/norm1", "backward", "sums", 4, 500, None),
    # a path within the loop alone
    "gates": ("encoder/latent/blocks/attn.sums", "backward", "loops", 4, 30, None),
    # made by XLA: the loop's
    "moved": ("encoder/latent", "backward", "copies", 4, 20, 40),
    "kernel": ("encoder/latent/blocks/ffn/gate", "backward", "kernels", 4, None, 900),
    "cut": (OUTSIDE, "rest", "prefetches", 1, None, None),
    "scaled": (
        *("flow/level1/conditional/step/invconv.forward_rows", "forward", "loops"),
        *(1, 7, None),
    ),
    "reduced": (
        *("flow/level1/conditional/step/invconv.forward_rows", "forward", "collectives"),
        *(1, None, None),
    ),
    "rate": (OUTSIDE, "rest", "loops", 1, 3, None),
}


def test_each_instruction_has_a_layer_a_phase_and_a_kind():
    found = {
        p.name: (p.layer, p.phase, p.kind, p.turns, p.cycles, p.scheduled) for p in pieces(PROGRAM)
    }
    assert found == EXPECTED


def test_all_is_told_once():
    found, whole = pieces(PROGRAM), read_program(PROGRAM)
    assert sum(piece.all_cycles for piece in found) == whole.cycles == 4 * 1550 + 10
    assert sum(piece.turns * piece.traffic for piece in found) == whole.traffic
    summed = rows(found, clock=2.0)
    assert sum(row["estimated_seconds"] for row in summed) == whole.cycles / 2
    assert sum(row["scheduled_seconds"] for row in summed) == 4 * 1640 / 2
    assert sum(row["instructions"] for row in summed) == len(found)
    assert sum(row["hbm_traffic"] for row in summed) == whole.traffic


def test_a_prefetch_moves_its_slice_alone():
    (cut,) = (piece for piece in pieces(PROGRAM) if piece.name == "cut")
    # to memory on the chip: read from HBM once, 48 channels in 128 lanes
    assert cut.traffic == 2 * 160 * 128 * 2


def test_coverage_counts_what_the_schedule_knows():
    found = coverage(pieces(PROGRAM))
    assert found.scheduled == 4 * (700 + 40 + 900)
    assert found.estimated == 4 * (1000 + 20)  # of the kernel XLA says nothing
    assert found.without == 4 * 530 + 10
    assert found.share == pytest.approx(4080 / 6210)


def test_the_longest_group_comes_first():
    assert list(grouped(pieces(PROGRAM), lambda piece: piece.kind))[:3] == [
        *("products", "kernels", "sums")
    ]


def test_tables_say_all_on_a_narrow_terminal():
    text = io.StringIO()
    console = Console(file=text, width=60, soft_wrap=True)
    for table in tables(pieces(PROGRAM), clock=1e6, cycles=True):
        console.print(table)
    shown = text.getvalue()
    assert "…" not in shown
    kind, module, layer, scheduled, heaviest, covered = re.split(
        "\nms by|\nthe heavi|\nlibtpu", shown
    )
    cells = {line.split()[0]: line.split()[1:] for line in kind.splitlines()[3:] if line.strip()}
    # forward, recomputed, backward, rest, all, share, GB; the schedule's, and XLA's of the same
    assert cells["products"][:6] == ["0.00", "4.00", "0.00", "0.00", "4.00", "64.4%"]
    assert cells["products"][7:] == ["2.80", "4.00"]
    assert cells["kernels"][4] == "0.00"
    assert cells["kernels"][7:] == ["3.60", "0.00"]
    assert cells["all"][4] == "6.21"
    assert " ffn " in module
    assert " encoder/latent/blocks/ffn " in layer
    assert "encoder/latent/blocks/ffn/gate" in heaviest
    assert re.search(r"all .* 6\.56 +65\.7%", scheduled)
    assert "covers 65.7% of XLA's estimate: 6.56 ms where XLA says 4.08 ms" in covered


def _die(*_: object) -> None:
    os.write(2, b"F1127 llo_dumper.cc:1585] Static LLO profiling of sort.3 failed: Unsupported\n")
    os.abort()


def _starve(*_: object) -> None:
    schedule.LEAST_FREE = 1 << 60
    schedule.watch()


def test_a_failed_check_is_not_taken_for_want_of_memory():
    """As libtpu 0.0.42.1 writes it."""
    check = "llo_module.cc:66] Check failed: TakeStatus() is OK (INTERNAL: LLO_CHECK failure (...) "
    check += "Expected vector-f32, got vector-bf16packed\n*** Check failure stack trace: ***\n"
    assert "try --policy float32" in schedule._reason(check)
    assert "is there memory enough" in schedule._reason("Killed\n")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (_die, r"cycles of sort\.3 \(Unsupported\)"),
        pytest.param(_starve, r"all memory but 2 GiB.*--crop 40", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_dies_says_of_what(monkeypatch, tmp_path, end, message):
    """Real processes, one of which dies as libtpu does."""

    class Pool(concurrent.futures.ProcessPoolExecutor):
        def submit(self, fn, *args):
            return super().submit(end)

    monkeypatch.setattr(compilation, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(schedule, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(schedule, "_prepare", schedule.errors_to)
    with pytest.raises(schedule.ScheduleError, match=message):
        schedule.compile_scheduled("train", Config(), parse_slice("v5e:1x1"))
    assert not list(tmp_path.rglob("*.gz"))


def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    """Until the question, a compiler's flags, or the file are another."""
    monkeypatch.setattr(compilation, "cache_folder", lambda: tmp_path)
    asked, said = [], []

    def ask(question):
        return kept(question, lambda: asked.append(question) or ("answer", question), said.append)

    assert [ask("a"), ask("a"), ask("b")] == [("answer", name) for name in "aab"]
    assert asked == ["a", "b"]
    assert len(said) == 1
    (first, _) = sorted((tmp_path / "profiles").iterdir(), key=lambda path: path.stat().st_mtime)
    assert str(first) in said[0]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--another")
    ask("a")
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    first.write_bytes(first.read_bytes()[:20])
    with pytest.warns(UserWarning, match="made again"):
        assert ask("a") == ("answer", "a")
    assert asked == ["a", "b", "a", "a"]


def _compiled(folder: str) -> str:
    """The text of a small program with a kernel's schedule, compiled in this process."""
    schedule.prepare(folder)
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    def double(x_ref, o_ref):
        o_ref[...] = 2 * x_ref[...]

    def program(x):
        x = pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), name="two")(x)
        return jnp.linalg.slogdet(jnp.sin(x))[1]

    mesh = sharding.make_mesh(1, devices(parse_slice("v5e:1x1")))
    spec = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
    x = jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=spec)
    return sharding.jit(program, mesh).compile(x).as_text()


@needs_libtpu
def test_libtpu_counts_cycles_of_kernels(tmp_path):
    """And does not die of the decomposition's gathers."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        text = pool.submit(_compiled, str(tmp_path)).result()
    found = pieces(text)
    (kernel,) = (piece for piece in found if piece.kind == "kernels")
    assert kernel.layer == "two"
    assert kernel.cycles is None
    assert kernel.scheduled is not None
    assert 0 < kernel.scheduled < 100_000
    assert coverage(found).share > 0.5


@pytest.fixture
def recorded(monkeypatch):
    """What is compiled, in this process or another, is the recorded program."""
    blank = {field.name: 0 for field in dataclasses.fields(benchmark.Compiled)}
    texts = {"task": "train", "topology": "v5e:1x1", "policy": "bfloat16", "remark": "recorded"}
    made = benchmark.Compiled(**blank | texts | {"collectives": (), "kernels": (), "hlo": PROGRAM})
    for module, name in ((benchmark, "compile_for"), (schedule, "compile_scheduled")):
        monkeypatch.setattr(module, name, lambda *args: made)


COMMAND = ["compile", "--topology", "v5e:1x1", "--only", "train"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["HBM a device"]),
        (["--breakdown"], ["ms by kind: XLA's estimate\n", "encoder/latent/blocks/ffn"]),
        (["--cycles"], ["and libtpu's schedule\n", "covers 65.7% of XLA's estimate"]),
    ],
)
def test_the_command_shows_what_it_was_asked(recorded, capsys, options, words):
    assert cli.main([*COMMAND, *options]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)
    assert ("ms by kind" in shown) == bool(options)


@pytest.mark.parametrize("option", ["--breakdown", "--cycles"])
def test_json_has_no_text_but_rows(recorded, capsys, option):
    assert cli.main([*COMMAND, option, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "hlo" not in found
    clock = parse_slice("v5e:1x1").chip.clock
    assert found["breakdown"] == rows(pieces(PROGRAM), clock)


@pytest.mark.slow
@needs_libtpu
def test_the_training_steps_time_by_layer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compilation, "cache_folder", lambda: tmp_path)
    options = ["--topology", "v5e:1x1", "--batch", "4", "--crop", "16", "--only", "train"]
    assert cli.main(["compile", *options, "--cycles", "--json", *NANO]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "hlo" not in found
    assert found["remark"].endswith(schedule.REPLACED)
    summed = found["breakdown"]
    whole = sum(row["estimated_seconds"] for row in summed)
    assert whole == pytest.approx(found["estimated_seconds"])
    assert sum(row["hbm_traffic"] for row in summed) == found["hbm_traffic"]
    assert {row["phase"] for row in summed} == {"forward", "recomputed", "backward", "rest"}
    layers = {row["layer"] for row in summed}
    assert {"encoder/refinement/blocks/ffn", "encoder/encoder_level1/blocks/attn.sums"} <= layers
    outside = sum(row["estimated_seconds"] for row in summed if row["layer"] == OUTSIDE)
    assert outside < 0.2 * whole
    assert sum(row["scheduled_estimated_seconds"] for row in summed) > 0.8 * whole
