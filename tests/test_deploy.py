"""A restorer as one file: exported, loaded where the model's code is not, and the same pictures."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest

import zmar_jax
from zmar_jax import cli, torch_port
from zmar_jax.benchmark import topology
from zmar_jax.benchmark.weights import random_state_dict
from zmar_jax.config import ModelConfig
from zmar_jax.data.sample import sample
from zmar_jax.deploy import archive
from zmar_jax.deploy.archive import ExportError, Reader
from zmar_jax.deploy.exporting import PLATFORMS, export_restorer
from zmar_jax.deploy.loading import load_exported
from zmar_jax.restore import Restorer, load_restorer
from zmar_jax.runtime import compilation
from zmar_jax.weights import Weights, load_weights

needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None,
    reason="flatbuffers is not installed: pip install 'zmar-jax[export]'",
)
pytestmark = needs_flatbuffers

SMALL: dict[str, Any] = {
    **{"dim": 2, "blocks": (1, 1, 1), "refinement_blocks": 1, "heads": (1, 1, 1)},
    **{"flow_additional_steps": 1, "flow_steps": 1, "flow_hidden": 4},
}


def weights_of(**settings: Any) -> Weights:
    config = ModelConfig(**SMALL, **settings)
    params = torch_port.to_params(random_state_dict(config, 0), config)
    return Weights(params, config, "orbax", 1, 1, ("float32",))


PLAIN, EXPOSED = weights_of(), weights_of(brightness=0.34)


def dark(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    """A dark picture, a tenth of whose pixels are lost."""
    rng = np.random.default_rng(height)
    low = sample()[0][:height, :width].astype(dtype) * (257 if dtype == np.uint16 else 1)
    low[rng.random(low.shape[:2]) < 0.1] = 0
    return low


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Programs for 24x32, to which 23x30 is padded, of a plain and an exposed model."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {"plain": folder / "plain.zmar", "exposed": folder / "exposed.zmar"}
    about = export_restorer(paths["plain"], PLAIN, ["23x30"], ["cpu"])
    assert (about.sizes, about.stride, about.checksum) == (("24x32",), 4, PLAIN.checksum)
    # the same programs and weights: only what is done to pictures before differs
    with zipfile.ZipFile(paths["plain"]) as read, zipfile.ZipFile(paths["exposed"], "w") as write:
        for name in read.namelist():
            content = read.read(name)
            if name == "about.json":
                content = content.replace(b'"brightness": 0.0', b'"brightness": 0.34')
            write.writestr(name, content)
    return paths


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> Path:
    """The weights of `PLAIN`."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch_port.write_safetensors(path, torch_port.to_state_dict(PLAIN.params, PLAIN.config))
    return path


def apart(found: np.ndarray, expected: np.ndarray) -> int:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return int(np.abs(found.astype(int) - expected).max())


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.slow), "exposed"])
def test_it_gives_what_restore_gives(kind, files):
    weights = {"plain": PLAIN, "exposed": EXPOSED}[kind]
    restorer, exported = Restorer(weights.config, weights.params), load_exported(files[kind])
    mask = np.zeros((23, 30), bool)
    mask[3:9, 5:11] = True
    for dtype, options in (
        (np.uint8, {}),
        (np.uint16, {}),
        (np.uint8, {"heat": 0.7, "seed": 3}),
        (np.uint8, {"mask": "none"}),
        (np.uint8, {"mask": mask, "brightness": 1.3}),
    ):
        image = dark(23, 30, dtype)
        expected = restorer(image, **options)
        # float32 of two programs that XLA may fuse in other ways
        assert apart(exported(image, **options), expected) <= (1 if dtype == np.uint8 else 4)
        assert expected.std() > 1


BARE = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused} or name.startswith("zmar_jax.models"):
            raise ModuleNotFoundError(f"no {{name}} here", name=name)
sys.meta_path.insert(0, Refused())
import numpy as np, zmar_jax
image = np.load({image!r})
np.save({out!r}, zmar_jax.load_exported({path!r})(image))
"""


@pytest.mark.parametrize("kind", ["plain", pytest.param("exposed", marks=pytest.mark.slow)])
def test_the_models_code_is_not_needed(kind, files, tmp_path):
    """Nor OpenCV, where pictures are not exposed."""
    image, out = tmp_path / "image.npy", tmp_path / "out.npy"
    np.save(image, dark(23, 30))
    refused = ["flax", "optax", "orbax", "torch", "tensorflow", "grain", "safetensors"]
    refused += ["cv2", "PIL", "skimage"] if kind == "plain" else []
    values = {"image": str(image), "out": str(out), "path": str(files[kind])}
    script = BARE.format(refused=refused, **values)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert apart(np.load(out), load_exported(files[kind])(dark(23, 30))) == 0


def test_other_sizes_and_images_are_refused_with_what_to_do(files):
    exported = load_exported(files["plain"])
    with pytest.raises(ExportError, match=r"has programs for 24x32 .*got 28x32.*--size dynamic"):
        exported(dark(27, 30))
    for image in (dark(23, 30)[..., 0], dark(23, 30) / 255, dark(7, 30)):
        with pytest.raises(ValueError, match="expected"):
            exported(image)
    for options in ({"heat": -1}, {"brightness": 0}, {"mask": "lost"}, {"mask": np.zeros((2, 2))}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}"):
            exported(dark(23, 30), **options)


def test_another_platform_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(zmar_jax.deploy.loading.jax, "default_backend", lambda: "gpu")
    with pytest.raises(ExportError, match=r"programs for cpu and not for cuda, .*--platforms cuda"):
        load_exported(files["plain"])


def test_files_that_are_none_are_refused(files, tmp_path):
    whole = files["plain"].read_bytes()
    for name, content in (
        ("missing", None),
        ("nonsense", b"nonsense"),
        ("half", whole[: len(whole) // 2]),
        ("changed", whole.replace(b'"stride"', b'"strife"')),
        ("later", whole.replace(b'"format": 1', b'"format": 9')),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ExportError, match=f"^{path}: "):
            load_exported(path)


def test_nothing_is_written_where_something_fails(tmp_path, monkeypatch):
    path = tmp_path / "old.zmar"
    path.write_bytes(b"old")
    monkeypatch.setattr(zmar_jax.deploy.exporting, "_exported", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_restorer(path, PLAIN, ["16x16"])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.zmar", b"old")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "400"], "--size must be dynamic, or HEIGHTxWIDTH"),
        (["--size", "4x600"], "at least 8x8"),
        (["--platforms", "abacus"], "platforms must be some of cpu, cuda, tpu"),
        (["-c", "nothing_here"], "nothing_here: expected a weights file"),
    ],
)
def test_bad_arguments_are_one_clear_line(options, message, small_file, tmp_path, capsys):
    options = options if "-c" in options else [*options, "-c", str(small_file)]
    assert cli.main(["export", str(tmp_path / "x.zmar"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_only_replaced_when_told(tmp_path, capsys):
    (tmp_path / "x.zmar").write_bytes(b"mine")
    assert cli.main(["export", str(tmp_path / "x.zmar")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    with pytest.raises(ExportError, match="is a folder"):
        archive.write(tmp_path, archive.About(4, 8, 3, 0.0, (), (), "", "", ""), {}, [])


def test_without_flatbuffers_it_says_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: export_restorer(tmp_path / "x.zmar", PLAIN, ["16x16"]),
        lambda: load_exported(files["plain"]),
    ):
        with pytest.raises(ExportError, match=r"needs flatbuffers: pip install 'zmar-jax\[export"):
            call()


@pytest.mark.slow
def test_dynamic_programs_take_every_size(tmp_path):
    path = tmp_path / "dynamic.zmar"
    export_restorer(path, PLAIN, ["dynamic"], ["cpu"])
    restorer, exported = Restorer(PLAIN.config, PLAIN.params), load_exported(path)
    for height, width in ((8, 9), (23, 30), (44, 20)):
        image = dark(height, width)
        assert apart(exported(image), restorer(image)) <= 1


@pytest.fixture(scope="module")
def for_all(small_file, tmp_path_factory) -> Path:
    """A file that the command wrote for every platform, none of which but a CPU is here."""
    path = tmp_path_factory.mktemp("exported") / "all.zmar"
    options = ["-c", str(small_file), "--size", "16x16", "--platforms", "cpu,cuda,tpu"]
    assert cli.main(["export", str(path), *options]) == 0
    return path


@pytest.mark.slow
def test_one_file_is_for_all_platforms_and_runs_on_this_one(for_all):
    names = zipfile.ZipFile(for_all).namelist()
    programs = {f"programs/{p}/16x16/{part}" for p in PLATFORMS for part in archive.PARTS}
    assert programs == {name for name in names if name.startswith("programs/")}
    image = dark(16, 15)
    assert apart(load_exported(for_all)(image), Restorer(PLAIN.config, PLAIN.params)(image)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["v5e:1x1", "h100"])
def test_its_programs_compile_for_accelerators_that_are_not_here(target, for_all):
    chip = topology.parse_slice(target).chip
    if not topology.installed(chip.platform):
        pytest.skip(f"the compiler for {chip.platform} is not installed")
    device = topology.devices(topology.parse_slice(target))[0]
    here = jax.sharding.SingleDeviceSharding(device)
    options = compilation.gpu_options(9) if chip.platform == "cuda" else {}
    for part in archive.PARTS:
        program = jax.export.deserialize(Reader(for_all).program(chip.platform, "16x16", part))
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in program.in_avals]
        arguments, _ = jax.tree.unflatten(program.in_tree, shapes)
        compiled = jax.jit(program.call).lower(*arguments).compile(compiler_options=options)
        pixels = {"encode": 16 * 16 * 16, "decode": 16 * 16 * 3}[part]
        assert compiled.memory_analysis().output_size_in_bytes >= 4 * pixels


@pytest.mark.slow
def test_the_bundled_model_is_the_same_in_a_file(tmp_path):
    path, image = tmp_path / "bundled.zmar", dark(61, 90)
    export_restorer(path, load_weights(), ["61x90"])
    assert apart(load_exported(path)(image), load_restorer()(image)) <= 1
