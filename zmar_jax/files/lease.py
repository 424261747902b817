"""A URL that one process at a time works below.

`.lock/N` is the lock: who creates the one with the highest number has it, and no two can. The
holder writes it again every few seconds. One that stays the same for a while is that of a machine
that is gone, and so is one of a process of this machine that has ended: the next number is free.
"""

import json
import os
import platform
import secrets
import threading
import time
from typing import Any

from zmar_jax.files.lock import LockedError
from zmar_jax.files.places import Bucket, PlaceError

RENEWED = 5.0
"""Seconds between two writes of the holder."""
STALE = 30.0
"""Seconds without one after which the holder is gone."""
FOLDER = ".lock"
"""Below the URL; no file of a mirror."""


class Lease:
    """The lock, from `Lease(url)` until `release`, or until the process ends."""

    def __init__(self, url: str):
        """Takes the lock; looks for up to `STALE` seconds whether another holder is at work.

        Raises:
          LockedError: one is. PlaceError: the bucket cannot be written.
        """
        self._bucket, self._token = Bucket(url), secrets.token_hex(8)
        self._number, self._beats = self._take(), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before anything is written that the next holder must not find.

        Raises:
          LockedError: another holder has begun since; this one had not written for too long.
        """
        if self._last() != self._number:
            raise LockedError(self._bucket.url)

    def release(self) -> None:
        """The next one may begin at once."""
        self._ended.set()
        self._thread.join()
        if self._last() == self._number:
            self._bucket.write(self._name(self._number), json.dumps({"released": True}).encode())

    def _take(self) -> int:
        last = self._last()
        try:
            if last and not self._is_free(last) and self._is_at_work(last):
                raise LockedError(self._bucket.url)
        except FileNotFoundError as e:  # the next holder has just removed it
            raise LockedError(self._bucket.url) from e
        if not self._bucket.create(self._name(last + 1), self._content(0)):
            raise LockedError(self._bucket.url)
        self._bucket.remove(*(self._name(n) for n in self._numbers() if n <= last))
        return last + 1

    def _is_at_work(self, number: int) -> bool:
        """Whether its holder writes it again within `STALE` seconds."""
        watched, end = self._bucket.read(self._name(number)), time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(RENEWED / 5)
            if self._bucket.read(self._name(number)) != watched:
                return not self._is_free(number)
        return False

    def _is_free(self, number: int) -> bool:
        """Whether its holder has released it, or was a process of this machine that has ended."""
        about: dict[str, Any] = json.loads(self._bucket.read(self._name(number)))
        if about.get("released"):
            return True
        return about.get("machine") == _machine() and not os.path.exists(
            f"/proc/{about['process']}"
        )

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            self._beats += 1
            try:
                self._bucket.write(self._name(self._number), self._content(self._beats))
            except PlaceError:
                continue  # `check` will tell whether anybody has begun meanwhile

    def _content(self, beats: int) -> bytes:
        about = {"machine": _machine(), "host": platform.node(), "process": os.getpid()}
        return json.dumps({**about, "token": self._token, "beats": beats}).encode()

    def _numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._bucket.names(FOLDER))
        return sorted(int(name) for name in names if name.isdecimal())

    def _last(self) -> int:
        """The highest number; 0 where there is none."""
        return max(self._numbers(), default=0)

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{number:06d}"


def _machine() -> str:
    """This boot of this machine and, where it is a container, which: what a process id is of."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # a system that cannot tell: no other process is of it
