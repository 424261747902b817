"""`train.trainable`: a part is trained, the rest stays bit for bit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training
from flax.traverse_util import flatten_dict

from zmar_jax.config import Config, ConfigError, override
from zmar_jax.models import param_shapes
from zmar_jax.train.state import state_of
from zmar_jax.train.trainable import changed, frozen_stopped, trained


def leaves(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["flow/.*", "encoder/r.*"])
def test_the_rest_stays_bit_for_bit(pattern):
    # weight decay and the moving average move what has no gradient, too
    decay = {"weight_decay_encoder": 0.1, "weight_decay_flow": 0.1}
    config = training.config(trainable=pattern, **decay)
    before = leaves(training.params())
    init, step = training.programs()
    state = init(
        state_of(config, training.params()), training.arrays(training.batch(0)), training.KEY
    )
    for i in (1, 2):
        state, metrics = step(state, training.arrays(training.batch(i)), training.KEY)
        assert metrics["skipped"] == 0
    for tree in (state.params, state.ema):
        after = leaves(tree)
        same = {name for name, leaf in after.items() if np.array_equal(leaf, before[name])}
        free = {name for name in after if re.fullmatch(pattern, name)}
        assert 0 < len(free) < len(after)
        assert same >= after.keys() - free
        # a scale of zeros has a gradient of its own; all others move
        assert len(free & same) < len(free) / 4


@pytest.mark.parametrize("pattern", ["flow", "flow/level9/.*", "Flow/.*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(ConfigError, match=r"matches no parameter; say flow/\.\*"):
        trained(param_shapes(training.MODEL), pattern)


def test_no_regular_expression_is_refused():
    with pytest.raises(ConfigError, match=r"trainable must be a regular expression.*\(flow"):
        override(Config(), ["train.trainable='(flow'"])


def test_no_gradient_and_no_change_reach_the_rest():
    params = {"flow": {"a": jnp.ones(3)}, "encoder": {"b": jnp.ones(2)}}

    def loss(params):
        params = frozen_stopped(params, "flow/.*")
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(params))

    gradient = jax.grad(loss)(params)
    assert gradient["flow"]["a"].tolist() == [2, 2, 2]
    assert gradient["encoder"]["b"].tolist() == [0, 0]
    new = jax.tree.map(lambda leaf: leaf - 0.5, params)
    after = changed(params, new, "flow/.*")
    assert after["flow"]["a"] is new["flow"]["a"]
    assert after["encoder"]["b"] is params["encoder"]["b"]


def test_without_a_pattern_all_are_trained():
    assert all(jax.tree.leaves(trained(param_shapes(training.MODEL), None)))
