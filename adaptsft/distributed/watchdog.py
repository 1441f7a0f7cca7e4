"""Ranks that hang end with the place where they hang."""

import faulthandler
import os
import sys
import threading
import time

from adaptsft.distributed.ranks import rank

HUNG = 7  # exit code of a rank that made no progress


class Watchdog:
    """Ends this rank when it has made no progress for `seconds`, and prints where it is: a
    collective that one rank never joins would otherwise hold the others for hours.

    It watches while it is entered, to `stop` at the latest. A context manager.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.step, self.last = seconds, 0, time.monotonic()
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.over.set()

    def beat(self, step: int) -> None:
        """There is progress: `step` (1-based) has begun, or continues."""
        self.step, self.last = step, time.monotonic()

    def _watch(self) -> None:
        while not self.over.wait(min(self.seconds / 4, 10.0)):
            if time.monotonic() - self.last > self.seconds:
                print(
                    f"rank {rank()}: no progress in step {self.step} for {self.seconds:g} s "
                    "(train.hang_timeout)",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(HUNG)
