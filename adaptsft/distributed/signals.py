"""Requests to stop, and a watchdog for ranks that hang."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from torch import Tensor

from adaptsft.distributed.ranks import rank

HUNG = 7  # exit code of a rank that made no progress


class Stopper:
    """Asks all ranks to save and stop when any of them receives SIGTERM or SIGUSR1.

    The request is summed in the step's all-reduce and read one step late, when its copy to the host
    has long arrived. As a context manager it puts the signal handlers back.
    """

    def __init__(self) -> None:
        self.requested = False
        self.copies: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            # ValueError: not the main thread, where the caller handles its own signals
            with contextlib.suppress(ValueError):
                self.before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        self.requested = True

    def ask(self, flag: Tensor) -> None:
        """Put this rank's request into `flag` (0-d, of the buffer that is summed over ranks)."""
        if self.requested:
            flag.fill_(1.0)

    def asked(self, flag: Tensor) -> bool:
        """Whether any rank had asked by the previous step; `flag` is this step's, after the
        all-reduce."""
        event = None
        if flag.is_cuda:
            copy = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            copy = flag.clone()
        self.copies.append((copy, event))
        if len(self.copies) < 2:
            return False
        copy, event = self.copies.pop(0)
        if event is not None:
            event.synchronize()
        return bool(copy > 0)


class Watchdog:
    """Ends this rank when it has made no progress for `seconds`, and prints where it is: a
    collective that one rank never joins would otherwise hold the others for hours.

    It watches from the first beat to `stop`. A context manager.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.step = seconds, 0
        self.last = float("inf")  # when there was progress
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.over.set()

    def beat(self, step: int) -> None:
        """There is progress: `step` (1-based) has begun, or goes on."""
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
