"""The numbers of the PyTorch release, file by file (model.md section 10)."""

import functools
import math
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from zmar_jax import ops, torch_port
from zmar_jax.config import PRESETS
from zmar_jax.flow import init_actnorm, invert_weights
from zmar_jax.models import ZmarSNFlow, losses
from zmar_jax.restore.programs import make_programs
from zmar_jax.runtime import compilation
from zmar_jax.tiling.rows import stripe_rows
from zmar_jax.torch_port.keys import Entry, key_table

TINY = PRESETS["tiny"]
TINY_CASES = tuple(golden.CASES)
FULL_CASES = ("full_64x96", pytest.param("full_160x160", marks=pytest.mark.slow))
CASES = (*TINY_CASES, *FULL_CASES)
CONDITIONS = ("fea_up0", "fea_up1", "fea_up2")

Errors = dict[str, float]


def worst(found: Any, expected: np.ndarray, unit: Any = 1.0) -> float:
    """The largest difference, in `unit`s."""
    assert found.shape == expected.shape
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected) / unit))


def small(errors: Errors, tolerance: float) -> None:
    bad = {key: error for key, error in errors.items() if not error <= tolerance}
    assert errors
    assert not bad, f"beyond {tolerance}: {bad}"


def setting(case: str) -> tuple[ZmarSNFlow, dict[str, Any], dict[str, np.ndarray]]:
    """The model, its variables and the golden file with images in NHWC."""
    preset, seed = (golden.CASES | golden.FULL_CASES)[case]
    arrays = {k: golden.nhwc(a) if a.ndim == 4 else a for k, a in golden.load(case).items()}
    return ZmarSNFlow(PRESETS[preset]), {"params": golden.params(preset, seed)}, arrays


def is_encoder(module: Any, method: str) -> bool:
    return method == "__call__" and module.path[:1] == ("encoder",)


@functools.cache
def encoded(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conditions, and what every module of the encoder returned."""
    model, variables, g = setting(case)

    def encode(variables: Any, lr: jax.Array, mask: jax.Array) -> Any:
        capture = {"capture_intermediates": is_encoder, "mutable": ["intermediates"]}
        return model.apply(variables, lr, mask, method="encode", **capture)

    conditions, state = compilation.jit(encode)(variables, g["lr"], g["mask"])
    return conditions, state["intermediates"]["encoder"]


def stage_output(case: str, name: str) -> jax.Array:
    """`tap/name` of model.md section 10: `stage`, or `stage.0.module` of its first block."""
    stage, *inner = name.split(".")
    node = encoded(case)[1][stage]
    if inner:
        return node["blocks"][inner[1]]["__call__"][0][0]
    output = node["__call__"][0]
    if stage.startswith("down"):
        return ops.squeeze2(output)
    return ops.unsqueeze2(output) if stage.startswith("up") else output


def encoder_output(case: str, name: str) -> jax.Array:
    return stage_output(case, "refinement") if name == "cat_f" else encoded(case)[0][name]


@functools.cache
def forward(case: str) -> tuple[jax.Array, jax.Array]:
    """z and logdet of the dequantised image."""
    model, variables, g = setting(case)
    x = losses.dequantize(g["gt"], g["noise"], model.config.quantization)
    run = compilation.jit(functools.partial(model.apply, method="forward"))
    return run(variables, x, g["lr"], g["mask"])


@functools.cache
def inverse(case: str) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Images and logdets by latent (`heat0`, `heat`), inverting W on the way."""
    model, variables, g = setting(case)
    run = compilation.jit(functools.partial(model.apply, method="inverse"))
    return {k: run(variables, z, g["lr"], g["mask"]) for k, z in latents(g).items()}


@functools.cache
def decoded(case: str) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The same from W^-1 as computed once, and the conditions as encoded once."""
    model, variables, g = setting(case)
    variables = variables | {"inverse": invert_weights(variables["params"])}
    run = compilation.jit(functools.partial(model.apply, method="decode"))
    return {k: run(variables, z, encoded(case)[0]) for k, z in latents(g).items()}


def latents(g: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"heat0": np.zeros_like(g["z_in"]), "heat": g["heat"].astype(np.float32) * g["z_in"]}


def dequantization(g: dict[str, np.ndarray]) -> float:
    """log(32) H W, where the release's float32 sums start; our logdets are the flow's alone."""
    return math.log(32) * math.prod(g["gt"].shape[1:3])


# From an image to tensors.


@pytest.mark.parametrize("case", CASES)
def test_network_input(case: str) -> None:
    _, _, g = setting(case)
    lr, mask = ops.network_input(g["low"])
    assert worst(lr, g["lr"]) <= 1e-6
    np.testing.assert_array_equal(mask, g["mask"])


@pytest.mark.parametrize("i", range(3))
def test_preprocess(i: int) -> None:
    g = golden.load("preprocess")
    lr, mask = ops.network_input(g[f"u8_{i}"][None])
    step = 8 if i == 0 else 1
    assert worst(lr[:, ::step, ::step], golden.nhwc(g[f"lr_{i}"])) <= 1e-6
    masks = ops.level_masks(mask, 3)
    for level, name in zip(masks, ("mask", "mask2", "mask4"), strict=True):
        np.testing.assert_array_equal(level, golden.nhwc(g[f"{name}_{i}"]), err_msg=name)


# The encoder.


@pytest.mark.parametrize("case", TINY_CASES)
@pytest.mark.parametrize("kind", ["enc", "tap"])
def test_encoder(case: str, kind: str) -> None:
    _, _, g = setting(case)
    output = encoder_output if kind == "enc" else stage_output
    names = [key.removeprefix(f"{kind}/") for key in g if key.startswith(f"{kind}/")]
    assert len(names) == {"enc": 4, "tap": 19}[kind]
    expected = {name: g[f"{kind}/{name}"] for name in names}
    small({n: worst(output(case, n), e, e.std()) for n, e in expected.items()}, 1e-4)


@pytest.mark.parametrize("case", FULL_CASES)
@pytest.mark.parametrize("kind", ["enc", "tap"])
def test_encoder_statistics(case: str, kind: str) -> None:
    _, _, g = setting(case)
    output = encoder_output if kind == "enc" else stage_output
    names = [key.removeprefix(f"{kind}_mean/") for key in g if key.startswith(f"{kind}_mean/")]
    assert len(names) == {"enc": 4, "tap": 19}[kind]
    errors = {}
    for name in names:
        found, std = np.asarray(output(case, name), np.float64), g[f"{kind}_std/{name}"]
        errors[name + " mean"] = worst(found.mean((1, 2)), g[f"{kind}_mean/{name}"], std)
        errors[name + " std"] = worst(found.std((1, 2), ddof=1), std, std)
    small(errors, 1e-4)


@pytest.mark.parametrize("case", FULL_CASES)
def test_encoder_crops(case: str) -> None:
    _, _, g = setting(case)
    errors = {}
    for name in (*CONDITIONS, "cat_f"):
        found = encoder_output(case, name)[:, :8, :8]
        std = g[f"enc_std/{name}"][:, None, None]
        errors[name] = worst(found, g[f"enc_crop/{name}"], std)
    small(errors, 1e-4)


@pytest.mark.slow  # tests/test_rows.py has stripes, too
def test_encoder_in_stripes() -> None:
    model, variables, g = setting("tiny_32x48")
    model = model.clone(stripe_bytes=40_000)
    assert stripe_rows((2, 32, 48, 8), 24, 1, model.stripe_bytes) == 8
    run = compilation.jit(functools.partial(model.apply, method="encode"))
    found, expected = run(variables, g["lr"], g["mask"]), {k: g[f"enc/{k}"] for k in CONDITIONS}
    small({k: worst(found[k], e, e.std()) for k, e in expected.items()}, 1e-4)


# The flow.


# a second size of the same model; tests/test_bijections.py has round trips
flows = pytest.mark.parametrize(
    "case", [TINY_CASES[0], pytest.param(TINY_CASES[1], marks=pytest.mark.slow), *FULL_CASES]
)


@flows
def test_latent(case: str) -> None:
    _, _, g = setting(case)
    assert worst(forward(case)[0], g["z"], g["z"].std()) <= 1e-4


@flows
def test_logdet(case: str) -> None:
    _, _, g = setting(case)
    expected = g["logdet"] + dequantization(g)
    assert worst(forward(case)[1], expected, dequantization(g)) <= 1e-5


@flows
def test_nll_of_latent_and_logdet(case: str) -> None:
    model, _, g = setting(case)
    pixels, quantization = math.prod(g["gt"].shape[1:3]), model.config.quantization
    nll = losses.nll_bits_per_pixel(*forward(case), pixels, quantization)
    np.testing.assert_allclose(nll, g["nll"], rtol=1e-5)


@pytest.mark.slow  # `test_loss` holds the same method
@pytest.mark.parametrize("case", ["tiny_32x48", "full_160x160"])
def test_nll(case: str) -> None:
    model, variables, g = setting(case)
    run = compilation.jit(functools.partial(model.apply, method="nll"))
    nll = run(variables, g["gt"], g["lr"], g["mask"], g["noise"])
    np.testing.assert_allclose(nll, g["nll"], rtol=1e-5)


restorations = pytest.mark.parametrize(
    ("case", "restore"),
    [
        (TINY_CASES[0], inverse),
        pytest.param(TINY_CASES[1], inverse, marks=pytest.mark.slow),
        (TINY_CASES[0], decoded),
        pytest.param(TINY_CASES[1], decoded, marks=pytest.mark.slow),
        ("full_64x96", decoded),
        pytest.param("full_64x96", inverse, marks=pytest.mark.slow),
        *[pytest.param("full_160x160", r, marks=pytest.mark.slow) for r in (inverse, decoded)],
    ],
)


@restorations
def test_restoration(case: str, restore: Any) -> None:
    _, _, g = setting(case)
    tolerance = 1e-4 if case in TINY_CASES else 2e-3
    small({k: worst(x, g[f"x_{k}"]) for k, (x, _) in restore(case).items()}, tolerance)


@restorations
def test_reverse_logdet(case: str, restore: Any) -> None:
    _, _, g = setting(case)
    expected = {k: g[f"logdet_reverse_{k}"] - dequantization(g) for k in latents(g)}
    found = {k: logdet for k, (_, logdet) in restore(case).items()}
    small({k: worst(found[k], e, dequantization(g)) for k, e in expected.items()}, 1e-5)


@pytest.mark.usefixtures("as_users_compile")
def test_restoration_compiled_as_users_do() -> None:
    model, variables, g = setting(TINY_CASES[1])
    programs = make_programs(model.config, compilation.stripe_bytes())
    variables = variables | {"inverse": invert_weights(variables["params"])}
    features = programs.encode(variables, g["low"])
    errors = {}
    for key, z in latents(g).items():
        found = programs.picture(programs.decode(variables, z, features))
        errors[key] = worst(found, np.clip(g[f"x_{key}"], 0, 1))
    small(errors, 1e-4)


# Gradients and initialisation.


def batch(name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """gt, lr and mask of a golden file that holds gt and low."""
    g = golden.load(name)
    return jnp.asarray(golden.nhwc(g["gt"])), *ops.network_input(golden.nhwc(g["low"]))


def live(entry: Entry, tensor: np.ndarray) -> np.ndarray:
    """A published tensor with zeros where nothing reads it."""
    out = np.zeros_like(tensor)
    for part in entry.parts:
        out[part.source] = tensor[part.source]
    return out


@functools.cache
def gradients() -> tuple[float, dict[str, np.ndarray]]:
    """The mean nll and its gradient in PyTorch's keys and layout; zero for what is not used."""
    gt, lr, mask = batch("tiny_gradients")
    noise = golden.nhwc(golden.load("tiny_gradients")["noise"])

    def loss(params: Any, *inputs: jax.Array) -> jax.Array:
        return ZmarSNFlow(TINY).apply({"params": params}, *inputs, method="nll").mean()

    run = compilation.jit(jax.value_and_grad(loss))
    value, tree = run(golden.params("tiny", 3), gt, lr, mask, noise)
    published = torch_port.to_state_dict(tree, TINY)
    return float(value), {e.key: live(e, published[e.key]) for e in key_table(TINY) if e.parts}


def test_loss() -> None:
    np.testing.assert_allclose(gradients()[0], golden.load("tiny_gradients")["loss"], rtol=1e-5)


def test_gradient_norms() -> None:
    g = golden.load("tiny_gradients")
    found = {
        f"norm/{key}": np.linalg.norm(x.astype(np.float64)) for key, x in gradients()[1].items()
    }
    assert found.keys() == {key for key in g if key.startswith("norm/")}
    small({key: worst(norm, g[key], g[key]) for key, norm in found.items()}, 1e-4)


def test_gradient_values() -> None:
    g = golden.load("tiny_gradients")
    expected = {key: g[key] for key in g if key.startswith("grad/")}
    found = {key: gradients()[1][key.removeprefix("grad/")] for key in expected}
    errors = {k: np.linalg.norm(found[k] - e) / np.linalg.norm(e) for k, e in expected.items()}
    small(errors, 1e-4)


def is_actnorm(path: tuple[str, ...]) -> bool:
    return path[-2].startswith("actnorm")


def without_actnorm(params: Any) -> dict[tuple[str, ...], jax.Array]:
    leaves = flatten_dict(params)
    return {path: 0 * leaf if is_actnorm(path) else leaf for path, leaf in leaves.items()}


@functools.cache
def initialise() -> Any:
    """params -> params, from the golden batch and the noise of step 0."""
    gt, lr, mask = batch("tiny_training")
    shape = golden.load("tiny_training")["gt"].shape
    noise = golden.nhwc(np.random.RandomState(5000).rand(*shape).astype(np.float32) - 0.5)
    run = compilation.jit(functools.partial(init_actnorm, ZmarSNFlow(TINY)))
    return lambda leaves: run(unflatten_dict(leaves), gt, lr, mask, noise)


def test_actnorm_initialisation() -> None:
    g = golden.load("tiny_training")
    params = initialise()(without_actnorm(golden.params("tiny", 3)))
    found = torch_port.to_state_dict(params, TINY)
    expected = {key.removeprefix("init/"): g[key] for key in g if key.startswith("init/")}
    assert expected.keys() == {key for key in found if ".actnorm." in key}
    small({key: worst(found[key], e) for key, e in expected.items()}, 1e-4)


def test_initialisation_keeps_actnorms_with_a_bias_and_all_other_parameters() -> None:
    leaves = without_actnorm(golden.params("tiny", 3))
    path = ("flow", "level2", "conditional", "step", "actnorm", "bias")
    leaves[path] = leaves[path].at[1, 5].set(0.25)  # one number, of the second step
    found = flatten_dict(initialise()(leaves))
    assert found.keys() == leaves.keys()
    for name in ("bias", "logs"):
        kept, given = found[*path[:-1], name], leaves[*path[:-1], name]
        np.testing.assert_array_equal(kept[1], given[1])
    assert np.all(found[*path[:-1], "logs"][0] != 0)  # the first step has none, and is set
    for other in leaves.keys() - {p for p in leaves if is_actnorm(p)}:
        np.testing.assert_array_equal(found[other], leaves[other], err_msg="/".join(other))
