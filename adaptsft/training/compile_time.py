"""The seconds in which layers were compiled, which no figure of speed should count."""

import time
from contextlib import suppress
from typing import Any

from torch._dynamo.callback import callback_handler

from adaptsft.distributed.ranks import print0


class CompileTime:
    """Counts the seconds of all compilations in this process while it is open, whichever step or
    evaluation they fall in. A context manager."""

    def __init__(self) -> None:
        self.seconds = self.taken = self.began = 0.0

    def __enter__(self) -> "CompileTime":
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ValueError):  # torch.compiler.reset() has removed them
            callback_handler.remove_start_callback(self._start)
            callback_handler.remove_end_callback(self._end)

    def _start(self, _: Any) -> None:
        self.began = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def take(self) -> float:
        """The seconds since this was last called, which rank 0 prints if there are any."""
        since, self.taken = self.seconds - self.taken, self.seconds
        if since:
            print0(f"compiled in {since:.1f} s; tok/s, MFU and ETA do not count them")
        return since
