"""One job at a time in a thread of its own, one more may wait, all others are told to come back."""

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from zmar_jax.demo.errors import DemoError, gone
from zmar_jax.demo.pictures import Picture
from zmar_jax.demo.wishes import Wish

State = Literal["waiting", "running", "done", "failed", "cancelled"]
BROKEN = "this failed in a way that it should not; the terminal of zmar-jax demo says more"
_KEPT = 50


class Cancelled(Exception):
    """Raised in the work, at the next safe point after somebody has cancelled it."""


@dataclasses.dataclass(eq=False)
class Job:
    """What is to be done, how far it is, and how it ended."""

    picture: Picture
    wish: Wish
    id: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    stage: str = ""
    """What is being done, in words."""
    expected: float | None = None
    """Seconds that the whole work takes, where that is known."""
    message: str = ""
    """Why it failed."""
    result: Any = None
    began: float = 0.0
    seconds: float = 0.0
    asked: bool = False
    """Whether it was asked to end."""

    def tell(self, stage: str, expected: float | None = None) -> None:
        """Called by the work at its safe points; raises `Cancelled` where it is to end."""
        if self.asked:
            raise Cancelled
        self.stage, self.expected = stage, expected

    @property
    def share(self) -> float | None:
        """How much of the work is done, from 0 to 1, where that is known."""
        if self.state != "running" or not self.expected:
            return None
        return min((time.monotonic() - self.began) / self.expected, 0.98)


class Jobs:
    """A thread that works on jobs in turn.

    Args:
      work: does a job and returns its result, which becomes `Job.result`; it calls `Job.tell`.
      expected: errors whose text is for the visitor; all others are logged with their traceback.
    """

    def __init__(self, work: Callable[[Job], Any], expected: tuple[type[Exception], ...]):
        self._work, self._expected = work, expected
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="restoring", daemon=True)
        self._thread.start()

    def submit(self, picture: Picture, wish: Wish) -> Job:
        """A new job; DemoError where one is running and one is waiting."""
        with self._changed:
            if self._waiting():
                raise DemoError("others are before you: one runs, one waits; try again soon", 503)
            job = Job(picture, wish)
            self._jobs[job.id] = job
            for old in list(self._jobs)[:-_KEPT]:
                del self._jobs[old]
            self._changed.notify()
            return job

    def get(self, id_: str) -> Job:
        with self._changed:
            if id_ not in self._jobs:
                raise gone("job")
            return self._jobs[id_]

    def cancel(self, job: Job) -> None:
        """Ends a waiting job now, and a running one at its next safe point."""
        with self._changed:
            job.asked = True
            if job.state == "waiting":
                job.state = "cancelled"

    def close(self) -> None:
        """Cancels all jobs and returns when the one in work has ended."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.asked = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting())
                if self._closed:
                    return
                job = self._waiting()[0]
                job.state, job.began = "running", time.monotonic()
            state, message = self._outcome(job)
            with self._changed:
                job.seconds = time.monotonic() - job.began
                job.state, job.message = state, message

    def _outcome(self, job: Job) -> tuple[State, str]:
        try:
            job.result = self._work(job)
        except Cancelled:
            return "cancelled", ""
        except self._expected as e:
            return "failed", " ".join(str(e).split()) or type(e).__name__
        except Exception:
            logging.getLogger(__name__).exception("a job failed")
            return "failed", BROKEN
        return "done", ""
