"""What the processes of a run tell each other by JAX's coordination service, in the first of them.

It works where collectives of devices do not: while hosts have different devices, while one lets the
others wait for hours, and while one goes. JAX has no public name for it; Orbax, too, takes it from
`jax._src.distributed`.
"""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed

from zmar_jax.config import ConfigError

BEAT = 2.0
"""Seconds between two signs of life of a process."""
GONE = 20.0
"""Seconds without one after which the others end; JAX itself would end them at `HEARTBEAT`."""
HEARTBEAT = 60
"""Seconds after which JAX counts a process as gone that has told its service nothing. It tells it
something every half of that, so what it sees may be half as old: half is more than `GONE`, and the
time for which the first process lets the others end before it."""
_SILENT = 3.5 * BEAT
"""Seconds without a sign of life that tell who has gone where an exchange has failed already."""
_PATIENCE = 12.0
_LONGEST = 7 * 24 * 3600 * 1000
"""Milliseconds that one process may let the others wait, as by decoding a million pictures."""
_TOLD, _ALIVE = "zmar_jax/told", "zmar_jax/alive"
_DONE = "done"
_calls = itertools.count()


def exchange(text: str) -> list[str]:
    """The texts of all processes, which all make this call.

    Raises:
      ConfigError: they have not joined. jax.errors.JaxRuntimeError: one has gone.
    """
    client, mine, call = _client(), jax.process_index(), next(_calls)
    if client is None:
        raise ConfigError(
            "the processes of this run have not joined; call sharding.initialize_distributed, or "
            "jax.distributed.initialize, before anything else"
        )
    # names of files need not be UTF-8
    client.key_value_set_bytes(f"{_TOLD}/{call}/{mine}", text.encode("utf-8", "surrogateescape"))
    client.wait_at_barrier(f"{_TOLD}/{call}", _LONGEST)
    found = dict(client.key_value_dir_get_bytes(f"{_TOLD}/{call}/"))
    if call:  # all have read what was told before, as they are here
        client.key_value_delete(f"{_TOLD}/{call - 1}/{mine}")
    texts = {int(key.rpartition("/")[2]): value for key, value in found.items()}
    return [texts[i].decode("utf-8", "surrogateescape") for i in range(jax.process_count())]


@contextlib.contextmanager
def watching(end: Callable[[list[str]], object]) -> Iterator[Callable[[], list[str]]]:
    """In the block this process shows that it is alive, and looks whether the others are.

    Args:
      end: called, in a thread, with the names of those that were not seen for `GONE` seconds.

    Returns:
      What waits for up to `_PATIENCE` seconds until it is seen who has gone, and returns names.
    """
    if jax.process_count() == 1 or _client() is None:
        yield list
        return
    beats = Beats(_client(), jax.process_index(), socket.gethostname())
    for work in (beats.beat_until_end, lambda: beats.look_until_end(end)):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield beats.missing
    except BaseException:
        beats.end()  # JAX waits for the others at exit, and they are not to wait for this one
        raise
    beats.end(_DONE)


class Beats:
    """Signs of life: a number of each process in the store, which grows."""

    def __init__(self, client: Any, mine: int, host: str):
        self._client, self._key, self._host = client, f"{_ALIVE}/{mine}", host
        self._heard: dict[int, tuple[str, float]] = {}
        self._answered = time.monotonic()
        self._ended = threading.Event()
        self._sending = threading.Lock()

    def beat(self, number: int) -> None:
        """Shows this process, and sees the others."""
        with self._sending:
            if self._ended.is_set():
                return
            self._client.key_value_set(self._key, f"{number} {self._host}", allow_overwrite=True)
        found, now = self._client.key_value_dir_get(f"{_ALIVE}/"), time.monotonic()
        for key, value in found:
            process = int(key.rpartition("/")[2])
            if process not in self._heard or self._heard[process][0] != value:
                self._heard[process] = value, now
        self._answered = now

    def silent(self, seconds: float) -> list[str]:
        """Who has not been heard for so long; of several those that went first.

        The others cannot be seen where the first process, which keeps what they tell, has gone.
        """
        now, heard = time.monotonic(), dict(self._heard)
        if now - self._answered > seconds:
            return [_name(0, heard)]
        since = {process: at for process, (value, at) in heard.items() if value.split()[0] != _DONE}
        first = min(since.values(), default=now)
        if now - first <= seconds:
            return []
        return [_name(process, heard) for process, at in since.items() if at < first + 2 * BEAT]

    def missing(self) -> list[str]:
        """Waits until it is seen who has gone, or for `_PATIENCE` seconds."""
        end = time.monotonic() + _PATIENCE
        while not (gone := self.silent(_SILENT)) and time.monotonic() < end:
            time.sleep(BEAT / 4)
        return gone

    def beat_until_end(self) -> None:
        for number in itertools.count():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # then nobody has answered
                self.beat(number)
            if self._ended.wait(BEAT):
                return

    def look_until_end(self, end: Callable[[list[str]], object]) -> None:
        looked = time.monotonic()
        while not self._ended.wait(BEAT / 2):
            now = time.monotonic()
            if now - looked > 3 * BEAT:  # this process itself stood still, and heard nobody
                self._heard = {i: (value, now) for i, (value, _) in self._heard.items()}
                self._answered = now
            looked = now
            if gone := self.silent(GONE):
                end(gone)
                return

    def end(self, last: str = "") -> None:
        """No more signs of life, but for a `last` one."""
        self._ended.set()
        with self._sending, contextlib.suppress(jax.errors.JaxRuntimeError):
            if last:
                self._client.key_value_set(self._key, f"{last} {self._host}", allow_overwrite=True)


def _name(process: int, heard: dict[int, tuple[str, float]]) -> str:
    host = heard[process][0].partition(" ")[2] if process in heard else ""
    return f"process {process}" + f" ({host})" * bool(host)


def _client() -> Any:
    return distributed.global_state.client
