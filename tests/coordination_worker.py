"""A process of two that differ, and of which the second one goes; for test_coordination.py.

python coordination_worker.py COORDINATOR PROCESS
"""

import os
import signal
import sys

from zmar_jax.runtime import coordination, sharding
from zmar_jax.runtime.processes import HostsDifferError, agree, gather, together


def fails(text: str) -> None:
    raise OSError(text)


def main(coordinator: str, process: str) -> None:
    coordination.BEAT, coordination.GONE = 0.1, 1.0
    sharding.initialize_distributed(coordinator, 2, int(process))
    import jax

    for text in ("", f"{process} \udcff", "x" * 100_000 + process):
        texts = gather(text)
        assert texts[int(process)] == text
        print(*(len(each) for each in texts), texts[1][-3:].encode("utf-8", "replace"))
    agree({"steps": 4})
    try:
        agree({"devices": jax.local_device_count()})
    except HostsDifferError as e:
        print(str(e).splitlines()[1].replace(coordination.socket.gethostname(), "host"))
    try:
        together(lambda: fails("disk") if process == "1" else None)
    except (OSError, ValueError) as e:
        print(type(e).__name__, e)
    sys.stdout.flush()

    def end(gone: list[str]) -> None:
        print(*gone, flush=True)
        os._exit(75)

    with coordination.watching(end):
        gather("all are watching")
        if process == "1":
            coordination.time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        coordination.time.sleep(60)


main(*sys.argv[1:])
