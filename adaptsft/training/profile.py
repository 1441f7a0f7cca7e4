"""log.profile: what torch.profiler sees of a few steps, on every rank."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from adaptsft.distributed.ranks import print0, rank
from adaptsft.errors import ConfigError


class Profile:
    """Records from after step `start` until step `stop`, with what is allocated, and writes a
    Chrome trace per rank to run_dir/profile: https://ui.perfetto.dev shows it. Without log.profile
    it does nothing. A context manager: a run that ends in between leaves what it has.
    """

    def __init__(self, settings: list[int], run_dir: Path, first: int, steps: int):
        """`first`: steps already taken, of `steps`. Raises ConfigError where the run is shorter."""
        self.start, self.stop = settings or (-1, -1)
        self.folder = run_dir / "profile"
        self.profiler: profile | None = None
        if self.stop > steps:
            raise ConfigError(f"log.profile={settings}: this run has {steps} steps")
        if 0 <= self.start < first:
            print0(f"log.profile={settings}: this run continues from step {first}: no profile")
            self.start = -1

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._write()

    def before(self, step: int) -> None:
        """Call it before each step, 0-based, and after the last one."""
        if step == self.start:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.profiler = profile(activities=activities, profile_memory=True)
            self.profiler.start()
        elif step == self.stop:
            self._write()

    def _write(self) -> None:
        if self.profiler is None:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        path = self.folder / f"steps_{self.start + 1}_to_{self.stop}_rank_{rank()}.json.gz"
        try:
            self.folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # the trace is lost, not the run
            print0(f"warning: {path}: could not be written: {error}")
        else:
            print0(f"profile: {path}")
