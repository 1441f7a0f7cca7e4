"""A line per stage of a program, with its seconds; `make` prints its own stages alike."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WIDTH = 60  # of what stands before the seconds: the Makefile's `timed`


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Print the title, and the seconds when the block ends. The block receives a function for what
    it is doing: the last text stays in the line, earlier ones are seen on a terminal only."""
    started, terminal, detail = time.perf_counter(), sys.stdout.isatty(), ""

    def show(text: str) -> None:
        nonlocal detail
        detail = f": {text}"
        if terminal:
            line = (title + detail)[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", flush=True)

    print(title, end="", flush=True)
    try:
        yield show
    except BaseException:
        print(flush=True)
        raise
    rest = f"{title}{detail}".ljust(WIDTH)
    seconds = f"{time.perf_counter() - started:4.0f} s"
    print(f"\r\033[K{rest}{seconds}" if terminal else f"{rest[len(title) :]}{seconds}", flush=True)
