"""The trackers of a run, together: what each has of the run, and what happens when one fails."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError, reason_of, warn
from adaptsft.files import write_atomically
from adaptsft.training.trackers.base import Session, Tracker

# name in log.trackers, which is also its package: the class in the module of that name. Imported
# when a run has it.
CLASSES = {"tensorboard": "TensorBoard", "wandb": "WandB", "trackio": "Trackio", "mlflow": "MLflow"}


def check_installed(config: Config) -> None:
    """Raise ConfigError for a tracker whose package is missing."""
    for name in config.log.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as wandb's own files
            extra = "tensorboard" if name == "tensorboard" else f"'adaptsft[{name}]'"
            raise ConfigError(
                f"log.trackers: {name} is not installed: pip install {extra}, or leave it out"
            )


class Trackers:
    """Gives every figure to every tracker. On rank 0 only.

    `run_dir/trackers.json` holds what continues each: the service's own name of the run, and the
    last step that it has of training and of evaluation. A resumed run repeats its steps exactly, so
    that steps which a service has already are not sent again.
    """

    def __init__(self, config: Config, first: int):
        """`first`: steps already taken; a run that starts at 0 is a new one everywhere. Raises
        ConfigError where one cannot start."""
        self.path = Path(config.run_dir) / "trackers.json"
        known = json.loads(self.path.read_text()) if first and self.path.is_file() else {}
        self.active: dict[str, Tracker] = {}
        self.had: dict[str, dict[str, int]] = {}  # the last steps sent before this start
        self.state: dict[str, dict[str, Any]] = known
        for name in config.log.trackers:
            entry = known.get(name, {})
            try:
                tracker = _open(name, Session(config, first, entry.get("run")))
            except Exception as error:
                self.close(failed=True)
                hint = f"; to start anew there, delete its entry in {self.path}" if entry else ""
                raise ConfigError(
                    f"log.trackers: {name} could not start: {reason_of(error)}{hint}"
                ) from error
            self.active[name] = tracker
            if tracker.run_id is not None:
                self.had[name] = {kind: entry.get(kind, -1) for kind in ("train", "eval")}
                self.state[name] = {"run": tracker.run_id, **self.had[name]}
        self._save()

    def log(
        self,
        kind: str,
        step: int,
        scalars: dict[str, float],
        histograms: dict[str, np.ndarray] | None = None,
    ) -> None:
        """The figures of `kind`, train or eval, after `step` steps."""
        for name, tracker in list(self.active.items()):
            if step <= self.had.get(name, {}).get(kind, -1):
                continue
            done = self._holds(name, partial(tracker.log, step, scalars, histograms or {}))
            if done and name in self.state:
                self.state[name][kind] = max(step, self.state[name][kind])

    def flush(self) -> None:
        for name, tracker in list(self.active.items()):
            self._holds(name, tracker.flush)
        self._save()

    def close(self, failed: bool) -> None:
        for name, tracker in list(self.active.items()):
            self._holds(name, partial(tracker.close, failed))
        self.active = {}

    def _holds(self, name: str, work: Callable[[], None]) -> bool:
        """Whether the tracker did it. One that fails gets no more: the network may have gone, and
        each attempt would make all ranks wait for its time-out."""
        try:
            work()
        except Exception as error:
            del self.active[name]
            warn(
                f"log.trackers: {name} failed and gets no more of this run, which goes on; "
                f"metrics.jsonl has all of it: {reason_of(error)}"
            )
            return False
        return True

    def _save(self) -> None:
        if self.state:
            write_atomically(self.path, json.dumps(self.state, indent=1))


def _open(name: str, session: Session) -> Tracker:
    module = importlib.import_module(f"adaptsft.training.trackers.{name}")
    return getattr(module, CLASSES[name])(session)
