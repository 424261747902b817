"""An evaluation that several processes share: each restores its batches, and the first begins and
ends it.

Their devices compute apart: a picture's numbers do not depend on how many processes there are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from zmar_jax.evaluate.records import Records, only_evaluation, parts_of, shared_folder
from zmar_jax.files.mirror import Published
from zmar_jax.files.places import Place
from zmar_jax.runtime.processes import primary, together

T = TypeVar("T")


def which() -> tuple[int, int]:
    """Which of how many processes this is."""
    return jax.process_index(), jax.process_count()


@contextlib.contextmanager
def opened(
    out: Place, settings: Mapping[str, Any], overwrite: bool
) -> Iterator[tuple[Published, Records]]:
    """The folder to write to and the records of this process; all processes must enter it.

    Raises:
      EvaluationError, PlaceError, ProcessError: as `only_evaluation` and `Records`, in all.
    """
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[Published, Records]:
            folder = stack.enter_context(only_evaluation(out))
            records = functools.partial(Records, folder.path, settings, overwrite)
            return folder, _without_parts(folder, records)

        def join() -> tuple[Published, Records]:
            folder = stack.enter_context(shared_folder(out))
            return folder, Records(folder.path, settings, process=jax.process_index())

        first = together(lambda: begin() if primary() else None)
        yield together(lambda: first or join())


def gathered(folder: Published, records: Records) -> None:
    """Brings what all processes have done to the first one, which alone goes on."""
    together(folder.put)

    def gather() -> None:
        if jax.process_count() > 1 and primary():
            folder.get()
            _without_parts(folder, records.merge)

    together(gather)


def _without_parts(folder: Published, merge: Callable[[], T]) -> T:
    """What `merge` returns, which leaves no records of other processes; nor does the bucket."""
    parts = [path.name for path in parts_of(folder.path)]
    result = merge()
    folder.put()
    folder.forget(*parts)
    return result
