"""State dicts as frameworks save them, in parts and shards, and the configuration beside them."""

import dataclasses
import json
import os
import shutil
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_corpus import Call, Name, Storage, pth, put, state_of, tensor

from zmar_jax import torch_port
from zmar_jax.config import PRESETS, ModelConfig, from_dict, to_dict
from zmar_jax.files.errors import few
from zmar_jax.torch_port import StateDict, WeightsError, infer_config, read_state_dict
from zmar_jax.torch_port.keys import key_table
from zmar_jax.torch_port.parts import check_whole
from zmar_jax.torch_port.settings import check_pth, from_metadata
from zmar_jax.weights import Weights, load_weights, save_weights

FLOATS = np.arange(4, dtype=np.float32)
ARRAYS = {"RRDB.a.weight": FLOATS, "RRDB.b.0.bias": FLOATS[:2], "flowUpsamplerNet.c": FLOATS[2:]}
SMALL = ModelConfig(
    dim=4, blocks=(1, 1, 1), refinement_blocks=1, heads=(1, 1, 1), flow_steps=1, flow_hidden=2
)
KEYS = [entry.key for entry in key_table(SMALL)]


def file(folder: Path, saved: Any) -> Path:
    """A `.pth` of what was saved, whose arrays, at any depth, become tensors."""
    storages: dict[str, bytes] = {}

    def made(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            storages[key := str(len(storages))] = value.tobytes()
            return tensor(Storage(key, value.size), value.shape)
        return {k: made(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return put(folder, pth(made(saved), storages))


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray] = ARRAYS) -> dict[str, np.ndarray]:
    return {prefix + key: array for key, array in arrays.items()}


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray] = ARRAYS) -> None:
    assert {k: a.tolist() for k, a in found.items()} == {k: a.tolist() for k, a in expected.items()}


def refusal(path: Path, key: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path, key)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text


# Prefixes and wrappers.

PREFIXES = ("netG.", "model.", "generator.", "params.", "netG._orig_mod.module.", "a.b.model.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_taken_off_and_said(prefix: str, tmp_path: Path) -> None:
    found = read_state_dict(file(tmp_path, prefixed(prefix)))
    same(found)
    assert found.source == f"prefix {prefix!r} taken off the keys"
    path = tmp_path / "w.safetensors"
    torch_port.write_safetensors(path, prefixed(prefix))
    same(read_state_dict(path))


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "_orig_mod.module."])
def test_what_pytorch_wraps_modules_in_is_taken_off(prefix: str, tmp_path: Path) -> None:
    same(read_state_dict(file(tmp_path, prefixed(prefix))))
    inside = {k.replace(".", f".{prefix}", 1): a for k, a in ARRAYS.items()}
    same(read_state_dict(file(tmp_path, inside)))
    mixed = {k if "c" in k else prefix + k: a for k, a in ARRAYS.items()}
    same(read_state_dict(file(tmp_path, mixed)))
    twice = {**ARRAYS, f"{prefix}RRDB.a.weight": FLOATS}
    assert "holds both" in refusal(file(tmp_path, twice))


WRAPPERS = ("model", "model_state_dict", "net", "netG", "state_dict_ema", "ema", "state_dict")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_wrapper_is_looked_into(wrapper: str, tmp_path: Path) -> None:
    saved = {"epoch": 3, wrapper: prefixed("module."), "optimizer": {"state": {0: {"m": FLOATS}}}}
    same(read_state_dict(file(tmp_path, saved)))
    same(read_state_dict(file(tmp_path, {"checkpoint": saved})))
    same(read_state_dict(file(tmp_path, {wrapper: {"w": FLOATS}})), {"w": FLOATS})


def test_of_several_the_choice_is_said_and_a_key_picks(tmp_path: Path) -> None:
    other = {key: -array for key, array in ARRAYS.items()}
    saved = {"netG": ARRAYS, "netG_ema": prefixed("module.", other), "netD": {"w": FLOATS}}
    path = file(tmp_path, saved)
    found = read_state_dict(path)
    same(found, other)
    names = "'netG_ema' of 'netG', 'netG_ema' (--key picks)"
    assert found.source == f"{names}; prefix 'module.' taken off the keys"
    same(read_state_dict(path, "netG"))
    assert "holds no state dict 'x'; expected one of 'netG', 'netG_ema'" in refusal(path, "x")
    # a Lightning checkpoint: networks side by side in one dict, and losses
    mixed = {**prefixed("netG."), **prefixed("ema.module.", other), "vgg.0.weight": FLOATS}
    path = file(tmp_path, {"state_dict": mixed, "pytorch-lightning_version": "2.0"})
    same(read_state_dict(path), other)
    same(read_state_dict(path, "state_dict.netG"))
    # the object itself, and in it another
    path = file(tmp_path, {**ARRAYS, "best": other})
    same(read_state_dict(path))
    same(read_state_dict(path, "best"), other)
    same(read_state_dict(path, "."))


def test_one_that_lacks_tensors_comes_last(tmp_path: Path) -> None:
    part = dict([*ARRAYS.items()][:2])
    same(read_state_dict(file(tmp_path, {"ema": part, "model": ARRAYS})))


def test_tensors_beside_the_model_are_passed_over(tmp_path: Path) -> None:
    other = {key: -array for key, array in ARRAYS.items()}
    one = FLOATS[:1]
    beside = {"n_averaged": one, "step": one, "netD.0.weight": FLOATS, "netD.brightness": one}
    for prefix in ("", "module.", "netG."):
        same(read_state_dict(file(tmp_path, {**beside, **prefixed(prefix)})))
        own = {**ARRAYS, "brightness": one}
        same(read_state_dict(file(tmp_path, {**beside, **prefixed(prefix, own)})), own)
        torch_port.write_safetensors(tmp_path / "w.safetensors", {**beside, **prefixed(prefix)})
        same(read_state_dict(tmp_path / "w.safetensors"))
    # torch.optim.swa_utils.AveragedModel, which counts beside what it averages
    averaged = {"n_averaged": one, **prefixed("module.", other)}
    for name, expected in (("ema", other), ("swa", ARRAYS)):
        path = file(tmp_path, {"model": ARRAYS, name: averaged})
        same(read_state_dict(path), expected)
        same(read_state_dict(path, name), other)


def test_many_prefixes_take_no_time(tmp_path: Path) -> None:
    """Each key is looked at once, however many networks a hostile file claims to hold."""
    start = time.process_time()
    saved = dict.fromkeys((f"a{n}.RRDB.b" for n in range(5_000)), FLOATS[:1])
    torch_port.write_safetensors(tmp_path / "w.safetensors", saved)
    found = read_state_dict(tmp_path / "w.safetensors")
    assert len(found.source) < 500
    assert time.process_time() - start < 5


def test_dicts_in_dicts_without_end_take_no_memory(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b"}X\1\0\0\0a" * 30_000 + b"}" + b"s" * 30_000 + b"."
    tracemalloc.start()
    try:
        assert "found an object of type dict under 'a'" in refusal(put(tmp_path, pth(deep, {})))
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()


# Bystanders.

BYSTANDERS = {
    "Counter": Call(Name("collections", "Counter"), ({"a": 1},)),
    "set": Call(Name("__builtin__", "set"), ([1, 2],)),
    "complex": Call(Name("__builtin__", "complex"), (1.0, 2.0)),
    "device": Call(Name("torch", "device"), ("cuda", 0)),
    "Size": Call(Name("torch", "Size"), ((1, 2),)),
    "bytes": Call(Name("_codecs", "encode"), ("x", "latin1")),
    "dtype": Name("torch", "bfloat16"),
    "odd dtype": Name("torch", "complex64"),
    "odd keys": {(1, 2): 3, 0.5: 4, -1: 5, 1 << 70: 6, None: 7},
    "complex tensor": tensor(Storage("0", 1, Name("torch", "ComplexFloatStorage")), (1,)),
}


@pytest.mark.parametrize("case", BYSTANDERS)
def test_bystanders_are_passed_over(case: str, tmp_path: Path) -> None:
    bystander = BYSTANDERS[case]
    saved = {"epoch": bystander, "best": {"x": [bystander]}, "state_dict": ARRAYS}
    same(read_state_dict(file(tmp_path, saved)))
    same(read_state_dict(file(tmp_path, {**ARRAYS, "RRDB.d._extra_state": bystander})))
    if case == "complex tensor":  # a tensor among the model's is none of its bystanders
        return
    same(read_state_dict(file(tmp_path, {**ARRAYS, "epoch": bystander, "step": 3})))
    same(read_state_dict(file(tmp_path, {"decay": {"RRDB.a": bystander}, "net": ARRAYS})))
    if case != "odd keys":  # a dict is looked into, and in this one there is nothing
        assert "under 'RRDB.d'" in refusal(file(tmp_path, {**ARRAYS, "RRDB.d": bystander}))


def test_a_parameter_with_attributes(tmp_path: Path) -> None:
    rebuild = Name("torch._utils", "_rebuild_parameter_with_state")
    value = Call(rebuild, (tensor(Storage("0", 4), (4,)), True, OrderedDict(), {"a": 1}))
    found = read_state_dict(put(tmp_path, pth({"RRDB.a": value}, {"0": FLOATS.tobytes()})))
    same(found, {"RRDB.a": FLOATS})


@pytest.mark.parametrize("name", ["Counter", "set", "complex", "device"])
def test_a_bystander_is_no_state_dict(name: str, tmp_path: Path) -> None:
    assert f"type {name}" in refusal(file(tmp_path, BYSTANDERS[name]))
    assert f"type {name} under 'w'" in refusal(file(tmp_path, {"w": BYSTANDERS[name]}))


def test_a_gzip_archive_is_named(tmp_path: Path) -> None:
    assert "a gzip archive; unpack it" in refusal(put(tmp_path, b"\x1f\x8b\x08" + bytes(20)))


# Parts and shards.


def cause(keys: list[str]) -> str:
    with pytest.raises(WeightsError) as caught:
        infer_config(dict.fromkeys(keys, FLOATS))
    text = str(caught.value)
    assert len(text) < 400
    return text


def loaded(state: dict[str, np.ndarray]) -> Any:
    return torch_port.to_params(state, infer_config(state))


def test_a_whole_model_is_whole() -> None:
    for config in (SMALL, *PRESETS.values()):
        check_whole([entry.key for entry in key_table(config)])


def test_a_part_is_named() -> None:
    encoder = [key for key in KEYS if key.startswith("RRDB.")]
    flow = [key for key in KEYS if not key.startswith("RRDB.")]
    assert f"the encoder alone of a model, {len(encoder)} tensors" in cause(encoder)
    assert f"the flow alone of a model, {len(flow)} tensors" in cause(flow)
    assert "holds the encoder alone" in cause([key.removeprefix("RRDB.") for key in encoder])
    bare = [key.removeprefix("flowUpsamplerNet.") for key in flow]
    assert "holds the flow alone" in cause(bare)
    assert "a part of a model" in cause([key for key in KEYS if ".latent." not in key])


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_the_cause_is_a_part_wherever_a_file_is_cut(shards: int) -> None:
    """Not what follows from it, as a number of steps."""
    state = {e.key: np.broadcast_to(np.float32(0), e.shape) for e in key_table(SMALL)}
    for order in (KEYS, sorted(KEYS)):
        for shard in range(shards):
            part = order[shard * len(KEYS) // shards : (shard + 1) * len(KEYS) // shards]
            with pytest.raises(WeightsError, match=r"a part|alone") as caught:
                loaded({key: state[key] for key in part})
            assert "must be" not in str(caught.value)


def test_long_lists_end_after_twenty() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few([str(n) for n in range(23)], "; ").endswith("18; 19; and 3 more")
    state = {e.key: np.broadcast_to(np.float32(0), e.shape) for e in key_table(SMALL)}
    with pytest.raises(WeightsError, match=r"and \d+ more$") as caught:
        torch_port.to_params({k: a for k, a in state.items() if ".attn." not in k}, SMALL)
    assert str(caught.value).count("missing") == 20


def sharded(folder: Path, **index: Any) -> Path:
    keys = list(ARRAYS)
    names = {keys[0]: "m-00001-of-00002.safetensors"}
    names |= dict.fromkeys(keys[1:], "m-00002-of-00002.safetensors")
    for name in set(names.values()):
        arrays = {key: ARRAYS[key] for key in keys if names[key] == name}
        torch_port.write_safetensors(folder / name, StateDict(arrays, SMALL))
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": names} | index))
    return path


def test_sharded_files_are_read(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for path in (index, tmp_path):
        assert torch_port.weights_format(path) == "safetensors"
        found = read_state_dict(path)
        same(found)
        assert found.config == SMALL
    other = index.rename(tmp_path / "b.safetensors.index.json")
    shutil.copy(other, index)
    names = "'b.safetensors.index.json', 'm.safetensors.index.json'"
    assert f"holds several sharded files; give one of {names}" in refusal(tmp_path)
    same(read_state_dict(other))
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    assert "the shard 'm-00002-of-00002.safetensors' is not beside it" in refusal(index)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"weight_map": {"w": "../m-00001-of-00002.safetensors"}}, "outside its folder"),
        ({"weight_map": {"w": "m-00001-of-00002.safetensors"}}, "its shards lack 'w'"),
        ({"weight_map": {"w": ["m"]}}, "without a weight_map"),
        ({"weight_map": None}, "without a weight_map"),
    ],
)
def test_refused_indices(index: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(sharded(tmp_path, **index))


def test_a_single_shard_is_told_from_its_name(tmp_path: Path) -> None:
    sharded(tmp_path)
    match = r"is one of 2 shards of a file; give m\.safetensors\.index\.json"
    with pytest.raises(WeightsError, match=match):
        load_weights(tmp_path / "m-00002-of-00002.safetensors")
    part = file(tmp_path, ARRAYS).rename(tmp_path / "m-00001-of-00003.bin")
    with pytest.raises(WeightsError, match="is one of 3 shards of a file; give one file"):
        load_weights(part)
    (tmp_path / "m.bin.index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"a JSON file; give the weights, or the index"):
        load_weights(tmp_path / "m.bin.index.json")


def test_old_weights_that_cannot_be_put_back_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "a", None, "b")

    (tmp_path / ".w.replaced").mkdir()
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(WeightsError, match=r"w: its old weights cannot be put back .*'a' -> 'b'"):
        load_weights(tmp_path / "w")


# The configuration.

OTHERS: dict[str, Any] = {
    **{"dim": 8, "blocks": (1, 2, 1), "refinement_blocks": 2, "heads": (2, 1, 1)},
    **{"ffn_expansion": 2.0, "mask_grid": 2, "mask_threshold": 0.9, "mask_attention": False},
    **{"layer_norm_eps": 1e-6, "flow_additional_steps": 1, "flow_steps": 2, "flow_hidden": 3},
    **{"scale_shift": 2.5, "scale_eps": 1e-3, "actnorm_eps": 1e-7, "quantization": 64},
    **{"brightness": 0.34, "policy": "bfloat16"},
}
SHOWN = {
    *("dim", "blocks", "refinement_blocks", "heads", "ffn_expansion", "mask_attention"),
    *("flow_additional_steps", "flow_steps", "flow_hidden"),
}
fields = pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelConfig)])


def state_with(config: ModelConfig) -> StateDict:
    """Of this configuration, all zeros."""
    state = {e.key: np.zeros(e.shape, np.float32) for e in key_table(config)}
    if config.brightness:
        state["brightness"] = np.array([config.brightness], np.float32)
    return StateDict(state, config)


@fields
def test_every_field_is_in_every_format(field: str, tmp_path: Path) -> None:
    """Or it is refused by name: a `.pth` has no place for what no shape shows."""
    config = dataclasses.replace(SMALL, **{field: OTHERS[field]})
    state = state_with(config)
    path = tmp_path / "w.safetensors"
    torch_port.write_safetensors(path, state)
    assert infer_config(read_state_dict(path)) == config
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config  # in Orbax
    if field in SHOWN or field == "brightness":
        check_pth(state)
        path = put(tmp_path, pth(*state_of(state)))
        assert infer_config(read_state_dict(path)) == config
        return
    path = tmp_path / "w.pth"
    match = rf"w\.pth: a \.pth file cannot hold {field}={OTHERS[field]}, .*write a \.safetensors"
    with pytest.raises(WeightsError, match=match):
        torch_port.write_pth(path, state)
    assert not path.exists()


@fields
def test_the_checksum_is_of_the_configuration_too(field: str) -> None:
    params = {"a": {"b": FLOATS}}
    published = Weights(params, ModelConfig(), "pth", 0, 0, ()).checksum
    assert published == torch_port.params_checksum(params)  # as it always was
    config = dataclasses.replace(SMALL, **{field: OTHERS[field]})
    checksum = Weights(params, config, "pth", 0, 0, ()).checksum
    assert (checksum == published) == (field in SHOWN)  # sizes are in the shapes


@pytest.mark.slow
@fields
def test_every_field_comes_back_from_every_format(field: str, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, **{field: OTHERS[field]})
    params = torch_port.to_params(state_with(config), config)
    weights = Weights(params, config, "pth", 0, 0, ())
    for name, compact in (("orbax", False), ("a.safetensors", False), ("b.safetensors", True)):
        save_weights(tmp_path / name, weights, compact=compact)
        found = load_weights(tmp_path / name)
        assert (found.config, found.checksum) == (config, weights.checksum), name


def test_metadata_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    name = "zmar_jax.config"
    for text, expected in (
        ("{", "metadata is damaged"),
        ('{"dim": "x"}', "dim"),
        ('{"dim": 7}', "dim must be even"),
        ('{"\\u001b[2J": 7}', "metadata is damaged"),
        ("[" * 100_000, "metadata is damaged"),
    ):
        torch_port.write_safetensors(path, ARRAYS, {name: text})
        assert expected in refusal(path)
    assert from_metadata({"format": "pt"}) is None


def test_a_brightness_that_is_said_twice_must_agree() -> None:
    bright = dataclasses.replace(SMALL, brightness=0.34)
    state = StateDict(state_with(SMALL) | {"brightness": np.full(1, 0.5, np.float32)}, bright)
    with pytest.raises(WeightsError, match=r"metadata says brightness 0\.34, its tensor 0\.5"):
        infer_config(state)


# Names of files to be written.

NO_FORMAT = ("out.pt", "out.ckpt", "out.bin", "out.pth.tar", "out.npz", "out.onnx", "out.PT")


@pytest.mark.parametrize("name", NO_FORMAT)
def test_a_suffix_that_is_no_format_is_refused(name: str, tmp_path: Path) -> None:
    weights = Weights({}, SMALL, "pth", 0, 0, ())
    with pytest.raises(WeightsError, match=rf"{name}: \.\w+ is no format that is written here"):
        save_weights(tmp_path / name, weights)
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch_port.write_safetensors("~/w.safetensors", ARRAYS)
    same(read_state_dict("~/w.safetensors"))
    assert torch_port.weights_format("~/w.safetensors") == "safetensors"
    weights = Weights({}, SMALL, "pth", 0, 0, ())
    with pytest.raises(WeightsError, match=f"{tmp_path}/w.safetensors: exists already"):
        save_weights("~/w.safetensors", weights)


def test_other_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sys.modules[save_weights.__module__]
    written = []
    monkeypatch.setattr(files.checkpoint, "save_params", lambda path, *_: written.append(path))
    weights = Weights({}, SMALL, "pth", 0, 0, ())
    for name in ("weights", "weights-1.5", "my.orbax", ".hidden"):
        assert save_weights(tmp_path / name, weights) == "orbax"
    assert save_weights(tmp_path / "out.pt", weights, to="orbax") == "orbax"
    assert len(written) == 5
