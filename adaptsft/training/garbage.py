"""train.gc_every: when Python collects its garbage. torchtitan and nanochat do likewise."""

import gc


class GarbageCollection:
    """Collects every `every` steps, in the same step on every rank. Python itself collects when a
    rank has allocated enough, on each at another time, and the others wait for it. 0 leaves it to
    Python. A context manager: afterwards Python has its way again."""

    def __init__(self, every: int):
        self.every = every

    def __enter__(self) -> "GarbageCollection":
        if self.every > 0:
            gc.collect()  # what loading left
            gc.freeze()  # and what stays as long as the run: later collections pass it over
            gc.disable()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.every > 0:
            gc.unfreeze()
            gc.enable()

    def before(self, step: int) -> None:
        """Call it before each step, 0-based."""
        if self.every > 0 and step % self.every == 0:
            gc.collect()
