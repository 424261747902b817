"""What is wrong with a picture's file, in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class ImageError(ValueError):
    """A photograph cannot be read, written or found; the message is one line for the user."""


def image_error(path: Path, reason: str, advice: str) -> ImageError:
    return ImageError(" ".join(f"{path}: {reason}: {advice}".splitlines()))


@contextlib.contextmanager
def image_errors(path: Path, verb: str, also: tuple = (), advice: str = "") -> Iterator[None]:
    """OSError and `also` as ImageError, with `advice` for all but refusals of the system."""
    try:
        yield
    except ImageError:
        raise
    except (OSError, *also) as error:
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if getattr(error, "errno", None):
            advice = "check the name, the permissions and the disk"
        raise image_error(path, f"cannot be {verb} ({detail})", advice) from error
