"""MLflow: where MLFLOW_TRACKING_URI says. It has no histograms."""

import posixpath
import re
import time
from typing import Any

import numpy as np

from adaptsft.config.schema import all_keys, get
from adaptsft.training.trackers.base import Session, Tracker

MOST_METRICS, MOST_PARAMS = 1000, 100  # of one request


class MLflow(Tracker):
    def __init__(self, session: Session):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        self.waiting: list[Any] = []  # metrics that have not been sent
        self.sent: list[Any] = []  # what is under way
        if session.run_id is not None:
            self.run_id = self.client.get_run(session.run_id).info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = session.project("MLFLOW_EXPERIMENT_NAME")
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run_id = self.client.create_run(number, run_name=session.name).info.run_id
        params = [Param(key, str(get(session.config, key))) for key, _, _ in all_keys()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])

    def log(self, step: int, scalars: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(_key(key), value, now, step) for key, value in scalars.items()]

    def flush(self) -> None:
        """Send without waiting; an error of the requests before is raised here."""
        self._wait()
        metrics, self.waiting = self.waiting, []
        for start in range(0, len(metrics), MOST_METRICS):
            batch = metrics[start : start + MOST_METRICS]
            self.sent.append(self.client.log_batch(self.run_id, batch, synchronous=False))

    def close(self, failed: bool) -> None:
        self.flush()
        self._wait()
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

    def _wait(self) -> None:
        sent, self.sent = self.sent, []
        for operation in sent:
            operation.wait()


def _key(name: str) -> str:
    """A name without the characters that MLflow refuses, which a source's name may have."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name).strip("/"))
