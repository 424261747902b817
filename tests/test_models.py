"""What the models refuse, and what they give to the flow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from zmar_jax.benchmark.cost import multiply_adds
from zmar_jax.config import ModelConfig
from zmar_jax.models import ZmarSNFlow, param_shapes
from zmar_jax.models.encoder import Encoder

SMALL = ModelConfig(dim=2, heads=(1, 1, 1, 1), flow_steps=2, flow_hidden=4)


@pytest.mark.parametrize("size", [(16, 20), (12, 16), (8, 16), (16, 8)])
def test_the_encoder_says_how_to_pad(size: tuple[int, int]) -> None:
    lr, mask = (jax.ShapeDtypeStruct((1, *size, c), jnp.float32) for c in (3, 1))
    text = f"multiples of 8 and at least 16, got {size[0]}x{size[1]}; pad with ops.pad_to_multiple"
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(Encoder(SMALL).init, jax.random.key(0), lr, mask)


@pytest.mark.parametrize(
    ("lr", "mask"),
    [
        ((1, 16, 16, 1), (1, 16, 16, 1)),
        ((1, 16, 16, 3), (1, 16, 16, 3)),
        ((2, 16, 16, 3), (1, 16, 16, 1)),
    ],
)
def test_the_encoder_wants_an_image_and_its_mask(lr: Any, mask: Any) -> None:
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lr, mask))
    with pytest.raises(ValueError, match=r"expected lr \[B, H, W, 3\], mask \[B, H, W, 1\]; got"):
        jax.eval_shape(Encoder(SMALL).init, jax.random.key(0), *arrays)


def test_features_are_smaller_than_conditions_and_less_work() -> None:
    model, variables = ZmarSNFlow(SMALL), {"params": param_shapes(SMALL)}
    lr, mask, z = (
        jax.ShapeDtypeStruct((1, n, n, c), jnp.float32) for n, c in ((16, 3), (16, 1), (2, 192))
    )
    work = []
    for method, name, width in (("encode", "fea_up2", 12), ("features", "d2_f", 8)):
        made = jax.eval_shape(functools.partial(model.apply, method=method), variables, lr, mask)
        assert made[name].shape == (1, 8, 8, width)
        work.append(
            multiply_adds(functools.partial(model.apply, method="decode"), variables, z, made)
        )
    assert work[1] < work[0]
