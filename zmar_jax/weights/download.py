"""Weights on the Hugging Face Hub, by name: `hf:user/name`, fetched once and kept in its cache."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from zmar_jax.files.errors import brief
from zmar_jax.torch_port import WeightsError

PREFIX = "hf:"
FILE = "model.safetensors"
"""What `hub.save_pretrained` calls the weights, and what is taken where no file is named."""
_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^/@][^@]*))?"
)
INSTALL = "needs the package huggingface_hub: pip install 'zmar-jax[hub]'"


class Remote(NamedTuple):
    """A file in a repository of the Hub."""

    repo: str
    revision: str | None
    file: str


def is_remote(path: str | Path) -> bool:
    """Whether this is `hf:user/name`, and no path."""
    return str(path).startswith(PREFIX)


def parse(name: str | Path) -> Remote:
    """`hf:user/name`, `hf:user/name/FILE`, each with `@REVISION` after the name.

    Raises:
      WeightsError: it is none of these.
    """
    match = _NAME.fullmatch(str(name))
    if not match:
        raise WeightsError(
            f"{name}: expected hf:USER/NAME, hf:USER/NAME/FILE or hf:USER/NAME@REVISION"
        )
    return Remote(match["repo"], match["revision"], match["file"] or FILE)


def need_hub(name: str | Path) -> None:
    """Raises WeightsError where huggingface_hub is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise WeightsError(f"{name}: {INSTALL}")


def downloaded(name: str | Path) -> Path:
    """The file that `name` means, in the Hub's cache, fetched where it is not there yet.

    Without network, or with HF_HUB_OFFLINE=1, what is in the cache is taken.

    Raises:
      WeightsError: there is no such repository or file, or no network and nothing in the cache.
    """
    remote = parse(name)
    need_hub(name)
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(remote.repo, remote.file, revision=remote.revision))
    except errors.RepositoryNotFoundError as e:
        raise WeightsError(
            f"{name}: no such repository, or a private one; check the name, or log in with "
            "`hf auth login`"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise WeightsError(f"{name}: {remote.repo} has no revision {remote.revision}") from e
    except errors.LocalEntryNotFoundError as e:
        raise WeightsError(
            f"{name}: cannot be downloaded, and is not in the Hub's cache; check the network "
            "(HF_ENDPOINT, HF_HUB_OFFLINE), or download the file by other means and give its path"
        ) from e
    except errors.EntryNotFoundError as e:
        raise WeightsError(
            f"{name}: {remote.repo} holds no {remote.file}; name a file of it, as "
            f"hf:{remote.repo}/weights.pth"
        ) from e
    except Exception as e:  # of its HTTP library, which changes with its versions, and the disk's
        raise WeightsError(f"{name}: cannot be downloaded ({brief(e)})") from e
