"""Weights & Biases. WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY and so on are wandb's own.

The x-axis is a metric of ours, `step`: wandb's own step may not go back, and evaluations come
before the training steps that led to them are read from the device.
"""

import dataclasses
from typing import Any

import numpy as np

from adaptsft.training.trackers.base import Session, Tracker, bars


class WandB(Tracker):
    def __init__(self, session: Session):
        import wandb

        config = session.config
        self.histogram: Any = wandb.Histogram
        self.run: Any = wandb.init(
            project=session.project("WANDB_PROJECT"),
            name=session.name,
            id=session.run_id,
            # "must" would refuse a run of whom no step arrived
            resume=None if session.run_id is None else "allow",
            dir=config.run_dir,
            config=dataclasses.asdict(config),
            reinit="create_new",
        )
        self.run_id = self.run.id
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        drawn = {
            name: self.histogram(np_histogram=bars(counts)) for name, counts in histograms.items()
        }
        self.run.log({"step": step} | scalars | drawn)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
