"""`zmar-jax compare` and scripts/dump_activations.py: the layer where PyTorch parts from this."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import needs
import numpy as np
import pytest

from zmar_jax import cli, torch_port
from zmar_jax.config import PRESETS
from zmar_jax.evaluate import parity
from zmar_jax.torch_port.layers import layers

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = torch_port.StateDict(golden.state_dict("tiny", 0), TINY)
    torch_port.write_safetensors(path, state)
    return path


def disturbed(folder: Path, key: str, by: float = 0.5) -> Path:
    """The weights with one number of one tensor changed."""
    state = dict(golden.state_dict("tiny", 0))
    state[key] = state[key].copy()
    state[key].reshape(-1)[-1] += by
    path = folder / "disturbed.safetensors"
    torch_port.write_safetensors(path, torch_port.StateDict(state, TINY))
    return path


@pytest.fixture(scope="module")
def dumped(weights, tmp_path_factory) -> Any:
    """What PyTorch computes, in each direction and dtype, written once."""
    import dump_activations
    import torch

    torch.set_num_threads(1)
    folder, written = tmp_path_factory.mktemp("dumps"), {}

    def write(direction: str = "inverse", autocast: Any = None, of: Path = weights) -> Path:
        key = (direction, autocast, of)
        if key not in written:
            written[key] = folder / f"{len(written)}.npz"
            options: Any = {"size": "16x24", "direction": direction, "autocast": autocast}
            assert dump_activations.dump(weights=of, target=written[key], **options) == 0
        return written[key]

    return write


def compared(capsys, weights: Path, dump: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["compare", "--weights", str(weights), "--activations", str(dump), "--json"]
    capsys.readouterr()  # what the dump has said
    code = cli.main([*arguments, *options])
    return code, json.loads(capsys.readouterr().out)


def test_every_layer_has_the_name_of_a_module_in_the_release():
    modules = set()
    for key in golden.keys("tiny"):
        parts = key.split(".")
        modules |= {".".join(parts[:n]) for n in range(1, len(parts))}
    found = layers(TINY)
    assert {name for layer in found.values() for name in layer.names} <= modules
    assert found["encoder", "latent", "blocks", 0, "attn", "qkv"].names == (
        "RRDB.latent.0.attn.qkv",
    )
    mask = found["encoder", "encoder_level1", "blocks", 1, "mask", "qkv_dwconv"]
    assert mask.channels == slice(2 * TINY.dim, None)
    net = found["flow", "level2", "conditional", 1, "coupling", "fAffine"]
    assert net.names[0] == "flowUpsamplerNet.layers.9.affine.fAffine.4"


@needs.torch
@pytest.mark.slow
@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_all_layers_agree(direction, weights, dumped, capsys):
    code, result = compared(capsys, weights, dumped(direction))
    assert (code, result["first_divergence"]) == (0, None)
    shown = {row["name"]: row["difference"] for row in result["layers"]}
    assert len(shown) == len(result["layers"]) > 280
    # PyTorch's kernels of another order of sums: nothing but rounding
    assert max(shown.values()) < 1e-4
    assert {"RRDB.encoder_level1.layer_stack.0.norm1, call 2", "output"} <= shown.keys()
    assert "output of the fast form" in shown
    # no published module is left out but squeezes, shuffles and what holds others
    left_out = {name.rpartition(".")[2] for name in result["not_compared"]}
    assert not left_out & {"attn", "ffn", "mask", "qkv", "invconv", "actnorm", "norm2", "fAffine"}


@needs.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("RRDB.encoder_level2.layer_stack.0.mask.qkv_dwconv.weight", "mask.qkv_dwconv"),
        ("RRDB.decoder_level2.0.ffn.dwconv.weight", "ffn.dwconv"),
        ("RRDB.latent.0.attn.temperature", "attn.project_out"),
        ("flowUpsamplerNet.layers.8.affine.fAffine.2.weight", "fAffine.2.actnorm"),
        ("flowUpsamplerNet.layers.3.invconv.weight", "layers.3.invconv"),
    ],
)
def test_a_disturbed_weight_is_found(key, layer, weights, dumped, tmp_path, capsys):
    wrong = disturbed(tmp_path, key)
    code, result = compared(capsys, wrong, dumped())
    assert code == 1
    assert result["first_divergence"].endswith(layer)
    assert result["first_divergence"].startswith(key.rsplit(".", 3)[0].split(".weight")[0][:12])


@needs.torch
@pytest.mark.slow
@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_half_precision_is_told_from_a_mistake(autocast, weights, dumped, tmp_path, capsys):
    dump = dumped("inverse", autocast)
    code, result = compared(capsys, weights, dump)
    assert code == 0, result["first_divergence"]
    assert result["tolerance"] == parity.TOLERANCES[autocast]
    assert max(row["difference"] for row in result["layers"]) > 1e-3
    wrong = disturbed(tmp_path, "RRDB.refinement.0.ffn.project_in.weight", by=8)
    assert (
        compared(capsys, wrong, dump)[1]["first_divergence"] == "RRDB.refinement.0.ffn.project_in"
    )


@needs.torch
def test_any_module_with_published_names_is_recorded(tmp_path):
    import torch
    from dump_activations import recording

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            inner = torch.nn.ModuleDict({"patch_embed": torch.nn.Module()})
            inner["patch_embed"].proj = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.net = torch.nn.ModuleDict({"RRDB": inner})
            self.other = torch.nn.Conv2d(3, 3, 1)

    module, x = Other(), torch.ones(1, 3, 16, 16)
    proj = module.net["RRDB"]["patch_embed"].proj
    with recording(module, tmp_path / "d.npz", lr=x, mask=x[:, :1], z=torch.zeros(1, 192, 2, 2)):
        module.other(x)
        proj(x)
        first = proj(2 * x)
    proj(x)  # hooks are gone
    dump = parity.read_dump(tmp_path / "d.npz")
    names = [name for name in dump.arrays if name.startswith("layer/")]
    assert names == [f"layer/RRDB.patch_embed.proj#{n}" for n in (0, 1)]
    assert np.array_equal(dump.arrays[names[1]], first.detach().numpy())
    assert dump.direction == "inverse"


def test_differences_are_relative_and_never_hidden():
    expected = np.array([[3.0, -4.0]])
    assert parity.largest_difference(expected + 0.5, expected) == pytest.approx(0.5 / 12.5**0.5)
    assert parity.largest_difference(np.zeros((1, 2)), np.zeros((1, 2))) == 0
    assert parity.largest_difference(np.ones((1, 2)), np.zeros((1, 2))) == np.inf
    assert parity.largest_difference(expected.T, expected) == np.inf
    rows = [parity.Row("a", 0.0, False), parity.Row("b", np.nan, not np.nan <= 1)]
    assert parity.first_divergence(rows) == rows[1]


def write_dump(path: Path, version: int = 1, **arrays: np.ndarray) -> None:
    about = json.dumps({"format": version, "dtypes": {}})
    np.savez(
        path, **{"about": np.array(about), **{k.replace("__", "/"): a for k, a in arrays.items()}}
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "lacks the inputs lr, mask, gt, noise"),
        ({"z": (1, 192, 2, 2), "lr": (1, 3, 16, 16)}, "lacks the inputs mask"),
        ({"z": (1, 192, 2, 2), "lr": (1, 3, 16, 16), "mask": (1, 1, 8, 16)}, "does not fit lr"),
        ({"z": (1, 192, 1, 2), "lr": (1, 3, 9, 16), "mask": (1, 1, 9, 16)}, "multiples of 8"),
        (
            {"z": (1, 192, 2, 2), "lr": (1, 3, 16, 16), "mask": (1, 1, 16, 16)},
            "no layer has a name",
        ),
    ],
)
def test_a_wrong_dump_is_one_clear_line(inputs, message, weights, tmp_path, capsys, monkeypatch):
    path = tmp_path / "d.npz"
    arrays = {f"input__{name}": np.zeros(shape, np.float32) for name, shape in inputs.items()}
    write_dump(path, **arrays, **{"layer__other#0": np.zeros(3)})
    monkeypatch.setattr(parity, "_run", lambda *_: None)
    assert cli.main(["compare", "--weights", str(weights), "--activations", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert message in line


def test_a_file_of_something_else_is_refused(weights, tmp_path, capsys):
    for name, fill in (("a", b"nonsense"), ("b", None)):
        path = tmp_path / name
        if fill:
            path.write_bytes(fill)
        assert cli.main(["compare", "--weights", str(weights), "--activations", str(path)]) == 1
        assert f"error: {path}: cannot be read as activations" in capsys.readouterr().err
    write_dump(tmp_path / "d.npz", version=2)
    with pytest.raises(parity.EvaluationError, match="format 1"):
        parity.read_dump(tmp_path / "d.npz")


def test_without_torch_the_script_says_what_to_install(monkeypatch, capsys):
    import dump_activations

    monkeypatch.setattr(dump_activations.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["dump_activations.py", "--weights", "w.pth", "--out", "d.npz"])
    assert dump_activations.main() == 1
    assert "zmar-jax[torch]" in capsys.readouterr().err


def test_first_divergence_of_agreeing_rows_is_none():
    assert parity.first_divergence([parity.Row("a", 0.0, False)]) is None
    empty: Any = SimpleNamespace(arrays={"layer/x#0": 0, "layer/x#1": 0, "output": 0})
    assert parity.not_compared(empty, []) == ["x"]
