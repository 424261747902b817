"""scripts/export_onnx.py: a restorer as ONNX, which ONNX Runtime runs as this package does."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import export_onnx
import golden
import numpy as np
import pytest

from zmar_jax import torch_port
from zmar_jax.config import PRESETS
from zmar_jax.restore import Restorer

missing = [name for name in export_onnx.NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: pip install {missing}")


@pytest.mark.slow
@needs_onnx
def test_it_restores_as_the_restorer_does(tmp_path: Path) -> None:
    import onnxruntime

    weights, target = tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx"
    torch_port.write_safetensors(weights, golden.state_dict("tiny", 0))
    assert export_onnx.export(target=target, checkpoint=weights, size="dynamic") == 0
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    restorer = Restorer(PRESETS["tiny"], golden.params("tiny", 0))
    for height, width in ((24, 40), (32, 48)):
        image = np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8)
        image[::3, ::5] = 0
        inputs: dict[str, Any] = {
            "image": (image / np.float32(255)).transpose(2, 0, 1)[None],
            "z": np.zeros((1, 192, height // 8, width // 8), np.float32),
        }
        (found,) = session.run(None, inputs)
        expected = restorer(image).astype(int)
        assert np.abs(np.round(255 * found[0].transpose(1, 2, 0)) - expected).max() <= 1
        assert expected.std() > 1


@needs_onnx
def test_settings_that_pytorch_does_not_have_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    config = dataclasses.replace(PRESETS["tiny"], mask_threshold=0.3)
    state = torch_port.StateDict(golden.state_dict("tiny", 0), config)
    torch_port.write_safetensors(weights, state)
    with pytest.raises(ValueError, match=r"release has no mask_threshold=0\.3"):
        export_onnx.export(target=tmp_path / "x.onnx", checkpoint=weights, size="16x16")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.skipif(not missing, reason="all that it needs is here")
def test_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs .*: pip install 'zmar-jax\[torch\]' onnx onnxscr"):
        export_onnx.export(target=tmp_path / "x.onnx")


@needs_onnx
def test_sizes_are_multiples_of_8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--size must be dynamic, or HEIGHTxWIDTH"):
        export_onnx.export(target=tmp_path / "x.onnx", size="20x24")
