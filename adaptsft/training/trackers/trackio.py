"""Trackio: on this machine (TRACKIO_DIR), or on a Space or a server (TRACKIO_SPACE_ID,
TRACKIO_SERVER_URL)."""

import contextlib
import dataclasses
import sys
import uuid
from typing import Any

import numpy as np

from adaptsft.training.trackers.base import Session, Tracker, bars


class Trackio(Tracker):
    def __init__(self, session: Session):
        import trackio

        self.module: Any = trackio
        # a run is found again by its name, which must not be that of another folder's run
        self.run_id = session.run_id or f"{session.name}-{uuid.uuid4().hex[:6]}"
        with contextlib.redirect_stdout(sys.stderr):
            self.run: Any = trackio.init(
                project=session.project("TRACKIO_PROJECT"),
                name=self.run_id,
                # "must" would refuse a run of whom no step arrived
                resume="never" if session.run_id is None else "allow",
                config=dataclasses.asdict(session.config),
                embed=False,
            )

    def log(self, step: int, scalars: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        histogram = self.module.Histogram
        drawn = {name: histogram(np_histogram=bars(counts)) for name, counts in histograms.items()}
        self.run.log(scalars | drawn, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.module.finish()
