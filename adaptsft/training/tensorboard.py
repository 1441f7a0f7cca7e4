"""TensorBoard files of a run; tensorboard is imported only where they are written."""

from pathlib import Path
from typing import Any

import numpy as np

from adaptsft.statistics.step import BINS, LOGIT_RANGE, p_of_bin_edges


class Board:
    def __init__(self, folder: Path, first_step: int):
        """`first_step`: steps already taken; what was written of later ones is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        purge = first_step + 1 if first_step else 0
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, prefix: str, values: dict[str, Any], step: int) -> None:
        """The floats among the values, as prefix/name."""
        for name, value in values.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{prefix}/{name}", value, step)

    def histogram_of_p(self, tag: str, counts: np.ndarray, step: int) -> None:
        """counts [BINS] in equal steps of log-odds; TensorBoard wants their upper edges in p."""
        edges = p_of_bin_edges()
        low, high = LOGIT_RANGE
        middles = 1 / (1 + np.exp(-(low + (high - low) * (np.arange(BINS) + 0.5) / BINS)))
        total, squares = float((counts * middles).sum()), float((counts * middles**2).sum())
        self.writer.add_histogram_raw(
            tag, 0.0, 1.0, int(counts.sum()), total, squares, edges[1:], counts.tolist(), step
        )

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
