"""TensorBoard: files in run_dir/tensorboard. What was written of later steps is hidden on resume,
and written again."""

from pathlib import Path

import numpy as np

from adaptsft.statistics.step import BINS, LOGIT_RANGE, p_of_bin_edges
from adaptsft.training.trackers.base import Session, Tracker


class TensorBoard(Tracker):
    def __init__(self, session: Session):
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(session.config.run_dir) / "tensorboard"
        purge = session.first + 1 if session.first else 0
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, scalars: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        for name, counts in histograms.items():
            self._histogram(name, counts, step)

    def _histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """TensorBoard wants the bins' upper edges, in p, and the sums of p and of its square."""
        edges = p_of_bin_edges()
        low, high = LOGIT_RANGE
        middles = 1 / (1 + np.exp(-(low + (high - low) * (np.arange(BINS) + 0.5) / BINS)))
        total, squares = float((counts * middles).sum()), float((counts * middles**2).sum())
        self.writer.add_histogram_raw(
            name, 0.0, 1.0, int(counts.sum()), total, squares, edges[1:], counts.tolist(), step
        )

    def flush(self) -> None:
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()
