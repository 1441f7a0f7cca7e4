"""Requests to stop: SIGTERM and SIGUSR1."""

import contextlib
import signal
from typing import Any

import torch
from torch import Tensor


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

    def write_request(self, flag: Tensor) -> None:
        """Put this rank's request into `flag` (0-d, of the buffer that is summed over ranks)."""
        if self.requested:
            flag.fill_(1.0)

    def poll(self, flag: Tensor) -> bool:
        """Whether any rank had asked by the previous step; `flag` is this step's, after the
        all-reduce. To be called once in every step: it starts the copy that the next call reads."""
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
