"""The key table and the bridge to PyTorch's state dicts, against the published keys and shapes."""

import contextlib
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import golden
import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_corpus import pth, put, state_of

from zmar_jax import torch_port
from zmar_jax.config import PRESETS, ModelConfig
from zmar_jax.models import ZmarSNFlow
from zmar_jax.torch_port import WeightsError
from zmar_jax.torch_port.keys import Entry, key_table

TINY, FULL = PRESETS["tiny"], PRESETS["zmar_snflow"]
FILES = {"tiny": TINY, "full": FULL}
Shapes = dict[str, tuple[int, ...]]

published = pytest.mark.parametrize("name", FILES)
quickly = settings(max_examples=60, deadline=None)


def tiny() -> dict[str, np.ndarray]:
    """A state dict that a test may change."""
    return golden.state_dict("tiny", 0)


@functools.cache
def initial_shapes(config: ModelConfig) -> dict[tuple[str, ...], Any]:
    image, mask = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 16, 16, 1), np.float32)
    init = functools.partial(ZmarSNFlow(config).init, jax.random.key(0))
    return flatten_dict(jax.eval_shape(init, image, image, mask, image)["params"])


def of_shapes(config: ModelConfig) -> dict[str, np.ndarray]:
    """A state dict of these sizes, one number in memory a tensor."""
    return {e.key: np.broadcast_to(np.float32(0), e.shape) for e in key_table(config)}


def live_size(entry: Entry) -> int:
    """Numbers of a published tensor that the model reads."""
    mask = np.broadcast_to(np.int8(0), entry.shape)
    return sum(mask[part.source].size for part in entry.parts)


# The key table.


@published
def test_keys_shapes_and_order_are_the_published_ones(name: str) -> None:
    found = [(e.key, e.shape, bool(e.parts)) for e in key_table(FILES[name])]
    assert found == [(key, shape, used) for key, (shape, used) in golden.keys(name).items()]


@pytest.mark.parametrize(("config", "tensors", "unused"), [(TINY, 384, 42), (FULL, 1603, 106)])
def test_counts(config: ModelConfig, tensors: int, unused: int) -> None:
    table = key_table(config)
    assert len({e.key for e in table}) == len(table) == tensors
    assert sum(not e.parts for e in table) == unused


def test_published_sizes() -> None:
    sizes = {e.key: math.prod(e.shape) for e in key_table(FULL)}
    encoder = sum(n for key, n in sizes.items() if key.startswith("RRDB."))
    total = sum(sizes.values())
    assert round(total / 1e6, 2) == 57.34
    assert [round(n / 1e6, 1) for n in (encoder, total - encoder)] == [34.5, 22.8]


@published
def test_what_is_dead_is_what_the_specification_lists(name: str) -> None:
    dead = ("attn_share.", ".mask.norm1.", "RRDB.output.", "RRDB.fine_tune_color_map.")
    dead += ("RRDB.reduce_chan1.", "flowUpsamplerNet.f.")
    for entry in key_table(FILES[name]):
        assert bool(entry.parts) != any(d in entry.key for d in dead), entry.key
        full = live_size(entry) == math.prod(entry.shape)
        partly = ".mask.qkv_dwconv." in entry.key
        assert full == (bool(entry.parts) and not partly), entry.key
        assert not partly or 3 * live_size(entry) == math.prod(entry.shape), entry.key


@published
def test_params_are_the_live_values(name: str) -> None:
    """Of 57.34 million published numbers, 44.44."""
    used = {key: math.prod(shape) for key, (shape, live) in golden.keys(name).items() if live}
    queries = sum(2 * n // 3 for key, n in used.items() if key.endswith("mask.qkv_dwconv.weight"))
    size = sum(math.prod(leaf.shape) for leaf in initial_shapes(FILES[name]).values())
    assert size == sum(used.values()) - queries == sum(map(live_size, key_table(FILES[name])))
    assert name == "tiny" or size == 44_438_396


# Both directions.


def test_params_are_those_of_the_model() -> None:
    params = flatten_dict(torch_port.to_params(tiny(), TINY))
    expected = initial_shapes(TINY)
    assert params.keys() == expected.keys()
    for path, leaf in params.items():
        assert isinstance(leaf, jax.Array)
        assert (leaf.shape, leaf.dtype) == (expected[path].shape, expected[path].dtype), path


def test_what_is_used_survives_bit_for_bit() -> None:
    given = tiny()
    found = torch_port.to_state_dict(torch_port.to_params(given, TINY), TINY)
    assert list(found) == list(given)
    for entry in key_table(TINY):
        assert (found[entry.key].shape, found[entry.key].dtype) == (entry.shape, np.float32)
        for part in entry.parts:
            a, b = found[entry.key][part.source], given[entry.key][part.source]
            assert a.tobytes() == b.tobytes(), entry.key


def test_every_number_of_the_params_has_a_place_of_its_own() -> None:
    count, leaves = 0, {}
    for path, leaf in initial_shapes(TINY).items():  # fewer than 2**24: exact in float32
        numbers = np.arange(count, count + math.prod(leaf.shape), dtype=np.float32)
        leaves[path], count = numbers.reshape(leaf.shape), count + numbers.size
    state = torch_port.to_state_dict(unflatten_dict(leaves), TINY)
    found = flatten_dict(torch_port.to_params(state, TINY))
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg="/".join(path))


def test_unused_tensors_may_be_missing_and_change_nothing() -> None:
    state = tiny()
    used = {e.key: state[e.key] for e in key_table(TINY) if e.parts}
    all_params, live_params = (torch_port.to_params(sd, TINY) for sd in (state, used))
    assert torch_port.params_checksum(all_params) == torch_port.params_checksum(live_params)
    state["RRDB.patch_embed.proj.weight"][0, 0, 0, 0] += 1
    other = torch_port.params_checksum(torch_port.to_params(state, TINY))
    assert other != torch_port.params_checksum(all_params)


def test_unused_numbers_are_initial_values_the_same_at_every_call() -> None:
    params = golden.params("tiny", 0)
    first, again = (torch_port.to_state_dict(params, TINY) for _ in range(2))
    given = tiny()
    for entry in key_table(TINY):
        assert first[entry.key].tobytes() == again[entry.key].tobytes()
        if live_size(entry) < math.prod(entry.shape):
            dead = np.ones(entry.shape, bool)
            for part in entry.parts:
                dead[part.source] = False
            check_initial(entry.key, first[entry.key][dead], given)


def check_initial(key: str, values: np.ndarray, state: dict[str, np.ndarray]) -> None:
    """Ones and zeros of a norm, ones of a temperature, else uniform by the fan-in."""
    if "temperature" in key or key.endswith("norm1.body.weight"):
        assert set(values.tolist()) == {1.0}, key
    elif key.endswith("norm1.body.bias"):
        assert set(values.tolist()) == {0.0}, key
    else:
        weight = state[key.removesuffix(".bias").removesuffix(".weight") + ".weight"]
        bound = math.prod(weight.shape[1:]) ** -0.5
        assert np.abs(values).max() <= bound, key
        assert values.size < 100 or np.abs(values).max() > 0.9 * bound, key
        assert len(np.unique(values)) > 0.9 * values.size, key


def test_unused_tensors_are_not_alike() -> None:
    state = torch_port.to_state_dict(golden.params("tiny", 0), TINY)
    shared = [a.tobytes() for key, a in state.items() if key.endswith("attn_share.qkv.weight")]
    assert len(set(shared)) == len(shared) == 4


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(dtype: Any) -> None:
    state = {key: a.astype(dtype) for key, a in tiny().items()}
    expected = torch_port.to_params({k: a.astype(np.float32) for k, a in state.items()}, TINY)
    found = torch_port.to_params(state, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert torch_port.params_checksum(found) == torch_port.params_checksum(expected)


def test_a_file_of_the_release_reads_back(tmp_path: Path) -> None:
    state, storages = state_of(tiny())
    found = torch_port.read_state_dict(put(tmp_path, pth(state, storages)))
    assert list(found) == list(state)
    assert all(found[key].tobytes() == a.tobytes() for key, a in tiny().items())


def test_a_half_precision_file_of_several_gpus_reads_back(tmp_path: Path) -> None:
    half = {key: a.astype(np.float16) for key, a in tiny().items()}
    found = torch_port.read_state_dict(
        put(tmp_path, pth(*state_of({f"module.{key}": a for key, a in half.items()})))
    )
    assert list(found) == list(half)
    assert all(found[key].tobytes() == a.tobytes() for key, a in half.items())


# What is refused.


def refusal(state: dict[str, Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        torch_port.to_params(state, TINY)
    return str(caught.value)


def test_everything_wrong_is_listed_at_once() -> None:
    state = tiny()
    del state["RRDB.reduce_chan0.weight"]
    del state["flowUpsamplerNet.layers.3.actnorm.logs"]
    state["RRDB.extra.weight"] = np.zeros(3, np.float32)
    state["RRDB.latent.0.norm1.body.bias"] = np.zeros((8, 8), np.float32)
    state["RRDB.output.weight"] = np.zeros((3, 16, 5, 5), np.float32)  # not used, but not it
    text = refusal(state)
    assert "5 problem(s)" in text
    for problem in (
        "missing RRDB.reduce_chan0.weight",
        "missing flowUpsamplerNet.layers.3.actnorm.logs",
        "unexpected RRDB.extra.weight",
        "misshapen RRDB.latent.0.norm1.body.bias: expected (64,), got (8, 8)",
        "misshapen RRDB.output.weight: expected (3, 16, 3, 3), got (3, 16, 5, 5)",
    ):
        assert problem in text


def test_claimed_sizes_are_not_allocated() -> None:
    """A tensor of a few numbers makes a model of hundreds of gigabytes: it is no such model."""
    state = tiny()
    state["RRDB.patch_embed.proj.weight"] = np.zeros((60_000, 1, 1, 1), np.float32)
    config = torch_port.infer_config(state)
    assert config.dim == 60_000
    with pytest.raises(WeightsError, match=r"misshapen RRDB\.patch_embed\.proj\.weight"):
        torch_port.to_params(state, config)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_what_is_not_floating_point_is_refused(dtype: str) -> None:
    state = tiny()
    state["RRDB.reduce_chan0.weight"] = state["RRDB.reduce_chan0.weight"].astype(dtype)
    assert f"not floating point: RRDB.reduce_chan0.weight is {dtype}" in refusal(state)


def test_params_of_another_size_are_refused() -> None:
    params = flatten_dict(torch_port.to_params(tiny(), TINY))
    del params["encoder", "reduce_chan0", "kernel"]
    params["encoder", "reduce_chan2", "kernel"] = np.zeros((3, 3), np.float32)
    params["encoder", "extra"] = np.zeros(3, np.float32)
    names = "encoder/extra, encoder/reduce_chan0/kernel, encoder/reduce_chan2/kernel"
    with pytest.raises(WeightsError, match=f"params do not fit the config at: {names}$"):
        torch_port.to_state_dict(unflatten_dict(params), TINY)


@pytest.mark.parametrize("state", [{}, {"model.0.weight": np.zeros((3, 3), np.float32)}])
def test_other_networks_are_recognised(state: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError, match="not a ZMAR-SNFlow generator") as caught:
        torch_port.infer_config(state)
    assert next(iter(state), "none") in str(caught.value)


# Sizes from shapes.


@published
def test_presets_are_inferred(name: str) -> None:
    assert torch_port.infer_config(of_shapes(FILES[name])) == FILES[name]


@st.composite
def sizes(draw: st.DrawFn, expansion: st.SearchStrategy[float]) -> ModelConfig:
    dim, few = 2 * draw(st.integers(1, 40)), st.integers(1, 3)
    divisors = [[n for n in range(1, 9) if (dim << level) % n == 0] for level in range(4)]
    blocks, heads = ([draw(s) for s in row] for row in ([few] * 4, map(st.sampled_from, divisors)))
    return ModelConfig(
        dim=dim,
        blocks=(blocks[0], blocks[1], blocks[2], blocks[3]),
        refinement_blocks=draw(few),
        heads=(heads[0], heads[1], heads[2], heads[3]),
        ffn_expansion=draw(expansion),
        flow_additional_steps=draw(few),
        flow_steps=draw(few),
        flow_hidden=draw(st.integers(1, 70)),
    )


@quickly
@example(ModelConfig(dim=30, heads=(1, 1, 1, 1), ffn_expansion=1.0270460758946225))
@given(sizes(st.integers(4, 40).map(lambda n: n / 8) | st.floats(0.5, 8)))
def test_sizes_are_inferred(config: ModelConfig) -> None:
    """All but the feed-forward's expansion, of which only the widths that it makes can be seen."""
    found = torch_port.infer_config(of_shapes(config))
    assert dataclasses.replace(found, ffn_expansion=config.ffn_expansion) == config
    widths = [config.dim << level for level in range(4)]
    assert [found.hidden(w) for w in widths] == [config.hidden(w) for w in widths]
    assert key_table(found) == key_table(config)


def test_the_ablation_has_no_mask_tensors_and_is_inferred() -> None:
    off = dataclasses.replace(TINY, mask_attention=False)
    state = {k: a for k, a in tiny().items() if ".mask." not in k}
    params = torch_port.to_params(state, torch_port.infer_config(state))
    assert torch_port.infer_config(state) == off
    assert flatten_dict(params).keys() == initial_shapes(off).keys()
    assert not any("mask" in path for path in flatten_dict(params))


@quickly
@given(data=st.data())
def test_inferring_from_mutilated_shapes_ends_well(data: st.DataObject) -> None:
    shapes: Shapes = {e.key: e.shape for e in key_table(TINY)}
    for key in data.draw(st.lists(st.sampled_from(INFORMATIVE), min_size=1, max_size=6)):
        shape = data.draw(st.none() | st.lists(st.integers(0, 100), max_size=4).map(tuple))
        shapes.pop(key, None)
        if shape is not None:
            shapes[key] = shape
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    with contextlib.suppress(WeightsError):
        assert isinstance(torch_port.infer_config(state), ModelConfig)


INFORMATIVE = [
    e.key
    for e in key_table(TINY)
    if e.key.endswith(("proj.weight", "attn.temperature", "project_in.weight", "invconv.weight"))
    or "fAffine2.0.weight" in e.key
]
