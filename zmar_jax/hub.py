"""Weights as folders and repositories of the Hugging Face Hub: saved, loaded, pushed.

A folder holds `model.safetensors` (all published keys), `config.json` and a card, `README.md`.
Whoever only wants to restore says `load_restorer("hf:user/name")`, or `--checkpoint hf:user/name`.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zmar_jax.config import ConfigError, ModelConfig, from_dict, to_dict
from zmar_jax.files.errors import brief, errors_as
from zmar_jax.files.places import local
from zmar_jax.files.replacing import whole_folder, write_whole
from zmar_jax.torch_port import WeightsError
from zmar_jax.weights import Weights, load_weights, parameter_counts, save_weights
from zmar_jax.weights.download import FILE, PREFIX, downloaded, need_hub, parse

CONFIG, CARD = "config.json", "README.md"
_MODEL_TYPE = "zmar_snflow"
_FILES = {FILE, CONFIG, CARD, ".git", ".gitattributes"}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card says beside what the weights tell."""

    title: str = "ZMAR-SNFlow"
    description: str = "What it was trained on, how, and what it cannot do: say it here."
    license: str | None = None
    """As the Hub has it: apache-2.0, cc-by-4.0, ..."""
    datasets: Sequence[str] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By name, as {"PSNR, LOL-v2-real": 24.5}."""


def save_pretrained(folder: str | Path, weights: Weights, card: Card | None = None) -> Path:
    """Writes weights, configuration and card as a folder, whole or not at all.

    A folder that holds such files is replaced; its card stays, unless `card` is given.

    Returns:
      The folder.

    Raises:
      WeightsError: the folder holds something else, or cannot be written.
    """
    folder = local(folder)
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or there - _FILES or ".git" in there:
        what = "is a file" if folder.is_file() else f"holds {min(there - _FILES, default='.git')}"
        raise WeightsError(f"{folder}: {what}, so it is not replaced; choose another name")
    with errors_as(WeightsError, lambda e: f"{folder}: cannot be written ({brief(e)})", OSError):
        kept = (folder / CARD).read_text("utf-8") if CARD in there and card is None else None
        with whole_folder(folder) as new:
            save_weights(new / FILE, weights)
            said = {"model_type": _MODEL_TYPE, **to_dict(weights.config)}
            write_whole(new / CONFIG, json.dumps(said, indent=2) + "\n")
            write_whole(new / CARD, kept or model_card(weights, card or Card()))
    return folder


def from_pretrained(name: str | Path, revision: str | None = None) -> Weights:
    """The weights in a folder of `save_pretrained`, or in a repository of the Hub.

    ```
    weights = from_pretrained("user/name")
    model, variables = ZmarSNFlow(weights.config), {"params": weights.params}
    ```

    Args:
      name: a folder that is there, else `user/name`, which may have `hf:` before it.
      revision: of a repository, a branch, tag or commit; the newest if not given.

    Raises:
      WeightsError: nothing of that name, no network and nothing in the cache, or a configuration
        that is not that of the weights.
    """
    folder = local(name)
    if folder.is_dir():
        return _agreed(load_weights(folder / FILE), folder / CONFIG)
    at = f"@{revision}" if revision else ""
    remote = f"{PREFIX}{str(name).removeprefix(PREFIX)}{at}"
    weights = load_weights(downloaded(remote))
    repo, *_ = parse(remote)
    return _agreed(weights, downloaded(f"{PREFIX}{repo}{at}/{CONFIG}"))


def push_to_hub(
    repo: str,
    weights: Weights,
    card: Card | None = None,
    private: bool | None = None,
    message: str = "Weights of zmar_jax",
    token: str | None = None,
) -> str:
    """Makes the repository `user/name`, if it is not there, and uploads what `save_pretrained` has.

    A card that the repository has already stays, unless `card` is given.

    Args:
      private: who may see a new repository; None is the account's default.
      token: to write with; None takes that of `hf auth login` or HF_TOKEN.

    Returns:
      The address of the commit.

    Raises:
      WeightsError: no network, no right to write, or a name that the Hub refuses.
    """
    need_hub(repo)
    import huggingface_hub as hub

    def problem(error: Exception) -> str:
        return (
            f"{repo}: cannot be pushed ({brief(error)}); check the name and the network, and log "
            "in with `hf auth login` and a token that may write"
        )

    api = hub.HfApi(token=token)
    # errors of its HTTP library, too, which changes with its versions
    with tempfile.TemporaryDirectory() as place, errors_as(WeightsError, problem):
        folder = save_pretrained(Path(place) / "model", weights, card)
        api.create_repo(repo, private=private, exist_ok=True)
        if card is None and api.file_exists(repo, CARD):
            (folder / CARD).unlink()
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    return str(done.commit_url)


def model_card(weights: Weights, card: Card) -> str:
    """The text of README.md: what the Hub reads, how to use it, sizes, scores."""
    about: dict[str, Any] = {
        "library_name": "zmar-jax",
        "pipeline_tag": "image-to-image",
        "tags": ["jax", "flax", "low-light", "image-restoration", "normalizing-flow"],
    }
    about |= {"license": card.license} if card.license else {}
    about |= {"datasets": list(card.datasets)} if card.datasets else {}
    counts = {part: live for part, live, _ in parameter_counts(weights.config)}
    rows = [
        ("parameters", f"{counts['both']:,}"),
        ("checksum", weights.checksum),
        *((name, f"{value:g}") for name, value in card.scores.items()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    exposed = "" if not weights.config.brightness else _EXPOSED
    return _TEMPLATE.format(
        front=yaml.safe_dump(about, sort_keys=False).strip(),
        title=card.title,
        description=card.description,
        table=table,
        exposed=exposed,
    )


_EXPOSED = """
The model sees each picture exposed (`brightness` in config.json), which zmar_jax does by itself;
PyTorch's release does not know it.
"""
_TEMPLATE = """---
{front}
---

# {title}

{description}

| | |
|---|---|
{table}
{exposed}
## Use

```sh
pip install 'zmar-jax[hub]'
zmar-jax restore dark.jpg --checkpoint hf:USER/NAME
```

```python
from zmar_jax import load_restorer

image = load_restorer("hf:USER/NAME")("dark.jpg")
```

`model.safetensors` has the keys of the PyTorch release of ZMAR-SNFlow; `config.json` has the sizes.
"""


def _agreed(weights: Weights, path: Path) -> Weights:
    """The weights, if the configuration beside them is theirs."""
    try:
        said = json.loads(path.read_text("utf-8"))
        kind = said.pop("model_type", None)
        config = from_dict(ModelConfig, said, str(path))
    except (OSError, ValueError, AttributeError, ConfigError) as e:
        raise WeightsError(f"{path}: cannot be read as a configuration ({brief(e)})") from e
    if kind != _MODEL_TYPE or config != weights.config:
        mine, theirs = to_dict(weights.config), to_dict(config)
        differ = [key for key in mine if mine[key] != theirs[key]] or ["model_type"]
        raise WeightsError(
            f"{path}: {', '.join(differ)} is not that of the weights beside it; save both again"
        )
    return weights
