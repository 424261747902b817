"""What the tensors of a model do not show, and how it comes along with them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from zmar_jax.config import ConfigError, ModelConfig, from_dict, to_dict
from zmar_jax.torch_port.pickles import WeightsError

BRIGHTNESS = "brightness"
"""A float32 [1] beside the published keys: `ModelConfig.brightness`, where it is not zero."""

_SHOWN = (
    *("dim", "blocks", "refinement_blocks", "heads", "ffn_expansion", "mask_attention"),
    *("flow_additional_steps", "flow_steps", "flow_hidden"),
)
"""The sizes, which names and shapes of the tensors show."""
_METADATA = "zmar_jax.config"


class StateDict(dict[str, np.ndarray]):
    """{key: array in PyTorch layout}, with what was said of the tensors.

    config: of the model; None in a file that does not have it.
    source: in words, which of several state dicts of a file this is, and what was taken off its
      keys; empty where there was nothing to choose or to take off.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        config: ModelConfig | None = None,
        source: str = "",
    ):
        super().__init__(tensors)
        self.config: ModelConfig | None = config
        self.source: str = source


def unpublished(config: ModelConfig) -> dict[str, Any]:
    """What no shape shows, by name, where it is not as published."""
    published = ModelConfig()
    names = (f.name for f in dataclasses.fields(config) if f.name not in _SHOWN)
    values = {name: getattr(config, name) for name in names}
    return {name: v for name, v in values.items() if v != getattr(published, name)}


def check_pth(state_dict: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError where a .pth file would come back as another model."""
    config = getattr(state_dict, "config", None)
    lost = unpublished(config) if config else {}
    lost.pop(BRIGHTNESS, None)  # it is a tensor
    if lost:
        raise WeightsError(
            f"a .pth file cannot hold {', '.join(f'{k}={v}' for k, v in lost.items())}, and would "
            "come back as another model; write a .safetensors file, which holds the configuration"
        )


def to_metadata(state_dict: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The metadata of a .safetensors file: the configuration, where it is known."""
    config = getattr(state_dict, "config", None)
    return {"format": "pt", _METADATA: json.dumps(to_dict(config))} if config else {}


def from_metadata(metadata: Mapping[str, str]) -> ModelConfig | None:
    """What `to_metadata` wrote; None where it did not.

    Raises:
      WeightsError: it is no configuration.
    """
    if _METADATA not in metadata:
        return None
    try:
        return from_dict(ModelConfig, json.loads(metadata[_METADATA]), _METADATA)
    except (ConfigError, ValueError, RecursionError) as e:
        problem = str(e).encode("unicode_escape").decode()[:300]
        raise WeightsError(
            f"its metadata is damaged, or of another version of zmar_jax ({problem}); convert the "
            "weights again"
        ) from e
