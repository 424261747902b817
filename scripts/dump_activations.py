"""Writes what a PyTorch ZMAR-SNFlow computes, layer by layer, for `zmar-jax compare`.

$ python scripts/dump_activations.py --weights LOLv2_G.pth --out dump.npz
$ python scripts/dump_activations.py --weights LOLv2_G.pth --image dark.png --size 96x96 --out d.npz
$ python scripts/dump_activations.py --weights w.pth --autocast bfloat16 --out dump.npz
$ python scripts/dump_activations.py --weights w.pth --module theirs.py:build --out dump.npz

The module is scripts/torch_model.py's, or of `--module FILE:FUNCTION`: FUNCTION takes the state
dict (of tensors) and returns the module, whose `reverse(z, lr, mask)` is run. Any other code runs
its own model in a block, by hooks on every module that has a published name:

    with recording(module, "dump.npz", lr=lr, mask=mask, z=z) as dump:
        dump.output = my_model.sample(...)

Needs `pip install 'zmar-jax[torch]'`.
"""

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import arg

from zmar_jax.files.replacing import whole_file

FORMAT = 1
ROOTS = re.compile(r"(?:^|\.)((?:RRDB|flowUpsamplerNet)\..+)$")
"""Published names, whatever prefix a framework gives them."""


class Recorded:
    """What hooks have seen; `output` is for whoever runs the model."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, str] = {}
        self.output: Any = None
        self._calls: dict[str, int] = {}

    def put(self, name: str, value: Any) -> None:
        """Keeps a tensor, or the first of several, as float32; anything else is passed over."""
        tensor: Any = _first(value)
        if tensor is not None:
            self.arrays[name] = tensor.detach().float().cpu().numpy()
            self.dtypes[name] = str(tensor.dtype).removeprefix("torch.")

    def saw(self, name: str, value: Any) -> None:
        """Keeps what the module `name` returned; each of its calls for itself."""
        nth = self._calls.get(name, 0)
        self._calls[name] = nth + 1
        self.put(f"layer/{name}#{nth}", value)


def _first(value: Any) -> Any:
    """A tensor, or the first of several; None where there is none."""
    if isinstance(value, tuple | list):
        return _first(value[0]) if value else None
    return value if hasattr(value, "detach") else None


@contextlib.contextmanager
def recording(module: Any, path: str | Path, **inputs: Any) -> Iterator[Recorded]:
    """In the block every published layer of `module` is recorded; then the file is written.

    Args:
      module: any `torch.nn.Module` whose parts are named as published, below any prefix. A part's
        `reverse`, where it has one, counts as a call.
      inputs: NCHW tensors: lr, mask, and z where the flow runs from latent to picture, or gt and
        noise where it runs from picture to latent.
    """
    recorded = Recorded()
    for name, tensor in inputs.items():
        recorded.put(f"input/{name}", tensor)
    named = ((match[1], m) for n, m in module.named_modules() if (match := ROOTS.search(n)))
    with contextlib.ExitStack() as hooks:
        for name, part in named:
            hooks.enter_context(_hooked(part, name, recorded))
        yield recorded
    recorded.put("output", recorded.output)
    about = json.dumps({"format": FORMAT, "dtypes": recorded.dtypes})
    with whole_file(Path(path)) as file:
        np.savez(file, about=np.array(about), **recorded.arrays)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def _hooked(part: Any, name: str, recorded: Recorded) -> Iterator[None]:
    handle = part.register_forward_hook(lambda _, __, result: recorded.saw(name, result))
    reverse = getattr(part, "reverse", None)
    if callable(reverse):

        def observed(*arguments: Any, **named: Any) -> Any:
            result = reverse(*arguments, **named)
            recorded.saw(name, result)
            return result

        part.reverse = observed
    try:
        yield
    finally:
        handle.remove()
        if callable(reverse):
            del part.reverse


def dump(
    *,
    weights: Path,
    target: Annotated[Path, arg(name="out", aliases=["-o"])],
    image: Path | None = None,
    size: str = "64x96",
    direction: Literal["inverse", "forward"] = "inverse",
    module: str | None = None,
    autocast: Literal["float16", "bfloat16"] | None = None,
    seed: int = 0,
) -> int:
    """Run a PyTorch model and write what each of its layers returned.

    Args:
      weights: A .pth or .safetensors file with the published keys.
      target: File to write, .npz.
      image: Dark picture, of which the middle is taken; without it, random pixels, some lost.
      size: Of what is taken, HEIGHTxWIDTH, multiples of 8. Every layer is kept in memory.
      direction: From latent to picture, as in restoring, or from picture to latent.
      module: FILE.py:FUNCTION that builds another module from a state dict.
      autocast: Compute under torch.autocast in this dtype.
      seed: Of random pixels, latent and noise.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError("needs PyTorch: pip install 'zmar-jax[torch]'")
    import torch  # pyright: ignore[reportMissingImports]

    from zmar_jax import torch_port

    read = torch_port.read_state_dict(weights)
    config = torch_port.infer_config(read)
    state = {k: torch.from_numpy(np.array(a, np.float32)) for k, a in read.items()}
    state.pop(torch_port.BRIGHTNESS, None)
    built = _build(module, state, config).eval()
    inputs = _inputs(image, *_size(size), config, direction, seed)
    scope = (
        torch.autocast("cpu", getattr(torch, autocast)) if autocast else contextlib.nullcontext()
    )
    with torch.inference_mode(), scope, recording(built, target, **inputs) as recorded:
        i = inputs
        if direction == "inverse":
            recorded.output = built.reverse(i["z"], i["lr"], i["mask"])
        else:
            recorded.output = built(i["gt"], i["lr"], i["mask"], i["noise"])
    print(f"{target}: {sum(n.startswith('layer/') for n in recorded.arrays)} results of layers")
    return 0


def _build(module: str | None, state: Mapping[str, Any], config: Any) -> Any:
    if module is None:
        import dataclasses

        from torch_model import loaded

        return loaded(dataclasses.asdict(config), state)
    file, _, function = module.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"--module {module}: expected FILE.py:FUNCTION, found no file {file!r}")
    spec = importlib.util.spec_from_file_location("their_module", file)
    assert spec
    assert spec.loader
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    return getattr(theirs, function)(state)


def _inputs(
    image: Path | None, height: int, width: int, config: Any, direction: str, seed: int
) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch_model import network_input

    generator = np.random.default_rng(seed)
    pixels = generator.random((height, width, 3), np.float32) * 0.3
    pixels[generator.random((height, width)) < 0.25] = 0
    if image is not None:
        pixels = _middle(image, height, width)
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    lr, mask = network_input(x)
    if direction == "inverse":
        h, w, c = config.latent_shape(height, width)
        z = 0.5 * generator.standard_normal((1, c, h, w), np.float32)
        return {"lr": lr, "mask": mask, "z": torch.from_numpy(z)}
    noise = torch.from_numpy(generator.random(x.shape, np.float32) - 0.5)
    return {"lr": lr, "mask": mask, "gt": (3 * x).clamp(0, 1), "noise": noise}


def _middle(image: Path, height: int, width: int) -> np.ndarray:
    """The middle of a picture, float32 [H, W, 3] in [0, 1]."""
    from zmar_jax.imaging.images import read_photo

    rgb = read_photo(image).rgb
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    if min(top, left) < 0:
        raise ValueError(f"{image}: is smaller than --size {height}x{width}; lower it")
    part = rgb[top : top + height, left : left + width]
    return part.astype(np.float32) / np.iinfo(rgb.dtype).max


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(height, width) < 16 or height % 8 or width % 8:
        raise ValueError(
            f"--size must be HEIGHTxWIDTH, multiples of 8 of at least 16, as 64x96; got {text}"
        )
    return height, width


def main() -> int:
    try:
        return tyro.cli(dump, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
