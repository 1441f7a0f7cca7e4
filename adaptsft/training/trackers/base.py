"""What a tracker does: all that the loop knows of TensorBoard, wandb, trackio and mlflow."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptsft.config.schema import Config
from adaptsft.statistics.step import BINS, p_of_bin_edges

BARS = 64  # of a histogram, where all BINS would be too many; metrics.jsonl has as many


@dataclass(frozen=True)
class Session:
    """What a tracker starts from."""

    config: Config
    first: int  # steps already taken
    run_id: str | None  # the tracker's own name of the run that this one continues

    @property
    def name(self) -> str:
        return Path(self.config.run_dir).absolute().name

    def project(self, variable: str) -> str:
        """log.project, or what the tracker's environment variable says."""
        return self.config.log.project or os.environ.get(variable) or "adaptsft"


class Tracker(ABC):
    """The run in one service; made on rank 0 only. Any exception of any method means that it has
    failed."""

    run_id: str | None = None  # by which it is continued; None where the folder is enough

    @abstractmethod
    def log(self, step: int, scalars: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        """The figures after `step` steps, as group/name; evaluations may come before the steps that
        led to them. Histograms are counts of p, [BINS], in equal steps of its log-odds."""

    def flush(self) -> None:  # noqa: B027  (most need none)
        """A batch of steps is complete: it should not be lost if the process dies now."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """`failed`: the run ends by an error."""


def bars(counts: np.ndarray) -> tuple[Any, Any]:
    """(counts [BARS], edges in p [BARS + 1]) of a histogram, as np.histogram has them."""
    edges = np.array(p_of_bin_edges())[:: BINS // BARS]
    return counts.reshape(BARS, -1).sum(1), edges
