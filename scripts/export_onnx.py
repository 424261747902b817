"""Writes a restorer as ONNX by way of PyTorch: scripts/torch_model.py, exported by torch.onnx.

$ python scripts/export_onnx.py --out restorer.onnx --size 400x600
$ python scripts/export_onnx.py -c LOLv2_G.pth --out restorer.onnx --size dynamic

The file takes `image`, float32 [1, 3, H, W] in [0, 1], H and W multiples of 8, and a latent `z`,
float32 [1, 192, H/8, W/8], of which zeros give the most likely picture; it returns `restored`,
[1, 3, H, W] in [0, 1]. A model with a brightness, as the bundled one, expects what
`zmar_jax.imaging.exposure.as_seen` makes of a picture.

Needs `pip install 'zmar-jax[torch]' onnx onnxscript onnxruntime`.
"""

import dataclasses
import functools
import importlib.util
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tyro.conf import arg

from zmar_jax.files.replacing import whole_file

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")
LATENT, STRIDE = 192, 8
TRACED = (64, 96)
"""Height and width of the picture that programs for every size are traced with."""


def export(
    *,
    target: Annotated[Path, arg(name="out", aliases=["-o"])],
    checkpoint: Annotated[Path | None, arg(aliases=["-c"])] = None,
    size: str = "dynamic",
    overwrite: bool = False,
) -> int:
    """Write a restorer as ONNX, run it once with ONNX Runtime, and say how far it is from PyTorch.

    Args:
      target: File to write, .onnx.
      checkpoint: Weights of any format; the bundled ones if not given.
      size: Of the pictures, HEIGHTxWIDTH, multiples of 8; or dynamic, for every such size.
      overwrite: Replace the file.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        install = "pip install 'zmar-jax[torch]' onnx onnxscript onnxruntime"
        raise ValueError(f"needs {', '.join(missing)}: {install}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target}: exists already; choose another name or --overwrite")
    height, width = TRACED if size == "dynamic" else _size(size)
    restoring = _restoring(checkpoint)
    inputs = _inputs(height, width)
    print(f"exporting for {size}, which takes a minute or more", file=sys.stderr)
    program = _program(restoring, inputs, dynamic=size == "dynamic")
    with whole_file(target) as file:
        file.write(program)
    off = _difference(target, restoring, _inputs(72, 104) if size == "dynamic" else inputs)
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, {off:.1e} of 1 from PyTorch")
    return 0


def _restoring(checkpoint: Path | None) -> Any:
    """The PyTorch module (image, z) -> restored."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch_model import InvConv, loaded, network_input

    from zmar_jax import torch_port
    from zmar_jax.torch_port.settings import unpublished
    from zmar_jax.weights import load_weights

    weights = load_weights(checkpoint)
    other = unpublished(weights.config)
    other.pop(torch_port.BRIGHTNESS, None)  # that is done before
    if other:
        said = ", ".join(f"{name}={value}" for name, value in other.items())
        raise ValueError(f"{weights.source}: PyTorch's release has no {said}")
    published = torch_port.to_state_dict(weights.params, weights.config)
    state = {key: torch.from_numpy(np.array(array)) for key, array in published.items()}
    network = loaded(dataclasses.asdict(weights.config), state)
    for part in network.modules():
        if isinstance(part, InvConv):  # ONNX has no inversion
            inverse = torch.linalg.inv(part.weight.detach().double()).float()[:, :, None, None]
            part.reverse = functools.partial(torch.nn.functional.conv2d, weight=inverse)

    class Restoring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any, z: Any) -> Any:
            return self.network.reverse(z, *network_input(image))[0].clamp(0, 1)

    return Restoring().eval()


def _inputs(height: int, width: int) -> dict[str, np.ndarray]:
    """A dark picture, a tenth of whose pixels are lost, and a latent."""
    generator = np.random.default_rng(0)
    image = 0.3 * generator.random((1, 3, height, width), np.float32)
    image[:, :, generator.random((height, width)) < 0.1] = 0
    shape = (1, LATENT, height // STRIDE, width // STRIDE)
    return {"image": image, "z": 0.5 * generator.standard_normal(shape, np.float32)}


def _program(restoring: Any, inputs: dict[str, np.ndarray], dynamic: bool) -> bytes:
    import torch  # pyright: ignore[reportMissingImports]

    rows, columns = (torch.export.Dim(name, min=2, max=1024) for name in ("rows", "columns"))
    shapes = {"image": {2: STRIDE * rows, 3: STRIDE * columns}, "z": {2: rows, 3: columns}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings(action="ignore"):  # of PyTorch's own use of itself
        program = torch.onnx.export(
            restoring,
            tuple(torch.from_numpy(array) for array in inputs.values()),
            dynamo=True,
            dynamic_shapes=shapes if dynamic else None,
            input_names=list(inputs),
            output_names=["restored"],
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def _difference(path: Path, restoring: Any, inputs: dict[str, np.ndarray]) -> float:
    """The largest between what ONNX Runtime and PyTorch restore."""
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, inputs)
    with torch.inference_mode():
        expected = restoring(*map(torch.from_numpy, inputs.values())).numpy()
    return float(np.abs(found - expected).max())


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(height, width) < 2 * STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError(
            "--size must be dynamic, or HEIGHTxWIDTH, multiples of 8 of at least 16, as 400x600; "
            f"got {text}"
        )
    return height, width


def main() -> int:
    try:
        return tyro.cli(export, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
