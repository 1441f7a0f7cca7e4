"""What the tests of controllers share: an adaptive objective, steps of known statistics, and a
small controller of the tests' own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig, TrainConfig
from adaptsft.controllers.base import REGISTRY, Controller, Progress, State, register
from adaptsft.controllers.moved_objective import MovedObjective
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.step import (
    BINS,
    COLUMNS,
    LOG_NLL_RANGE,
    LOGIT_RANGE,
    SourceStatistics,
    StepStatistics,
    bin_index,
)
from adaptsft.training.optim import progress_at

STEPS = 100
KNOWN = [0.99] * 9 + [0.001]  # as a model has it that knows the source, with a tenth wrong labels
NEW = [0.001] * 9 + [0.99]
CPU = torch.device("cpu")
TAKEN, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def progress(step: int, steps: int = STEPS) -> Progress:
    """A tenth of warm-up, then a cosine to 0."""
    return progress_at(step, steps, TrainConfig(lr=1.0, warmup_ratio=0.1))


def adaptive(
    sources: int = 1, base: StepStatistics | None = None, **settings: object
) -> MovedObjective:
    """An objective that reads all that moves, under the controller of these settings."""
    objective = ObjectiveConfig(name="threshold", base="alpha")
    measured = None if base is None else base.per_source()
    state = initial_state(objective, sources, CPU)
    config = ControllerConfig(**settings)
    return MovedObjective(build_objective(objective), state, config, measured)


def statistics(*p_of_source: list[float], tokens: int = 1000) -> StepStatistics:
    """Statistics in which each source has `tokens` tokens in each of the given p."""
    found = StepStatistics(len(p_of_source), CPU)
    for row, values in zip(found.table, p_of_source, strict=True):
        p = torch.tensor(values, dtype=torch.float64)
        sums = {"tokens": torch.ones_like(p), "p": p, "nll": -p.log(), "weight": p, "entropy": p}
        sums |= {"top1": p > 0.4, "collision": p, "below_0.2": p < 0.2}
        sums |= {"pull": p * (1 - p), "above_0.5": p > 0.5, "above_0.55": p > 0.55}
        for name, each in sums.items():
            row[COLUMNS.index(name)] = float(each.double().sum()) * tokens
        row[COLUMNS.index("sequences")] = 10
        cells = bin_index(p.logit(), LOGIT_RANGE, BINS)
        row[len(COLUMNS) : len(COLUMNS) + BINS] += torch.bincount(cells, minlength=BINS) * tokens
        cell = bin_index((-p.log()).mean().log()[None], LOG_NLL_RANGE, BINS)
        row[len(COLUMNS) + BINS + int(cell)] += 10
    return found


def trajectory(
    objective: MovedObjective, each: list[StepStatistics], field: str = "alpha"
) -> list[list[float]]:
    """The value of every step, [step][source], where step t leaves each[t]."""
    values = [getattr(objective.state, field).tolist()]
    for done, seen in enumerate(each, start=1):
        objective.update(seen, TAKEN, progress(done))
        values.append(getattr(objective.state, field).tolist())
    return values


def lr_scales(name: str, each: StepStatistics, steps: int = 30) -> list[float]:
    """What the learning rate of every step but the first is multiplied by."""
    objective, scales = adaptive(len(each.table), name=name), []
    for done in range(1, steps):
        objective.update(each, TAKEN, progress(done))
        assert objective.lr_scale is not None
        scales.append(float(objective.lr_scale))
    return scales


def alone(values: list[list[float]]) -> list[float]:
    return [value for (value,) in values]


@contextmanager
def only_shipped() -> Iterator[None]:
    """The registry without what other tests register, and as it was afterwards."""
    everything = REGISTRY.copy()
    for name, cls in everything.items():
        if not cls.__module__.startswith("adaptsft.controllers."):
            del REGISTRY[name]
    yield
    REGISTRY.clear()
    REGISTRY.update(everything)


def register_remembering() -> None:
    """controller.name=remembering: alpha is the running share of unlikely tokens, and a histogram
    is remembered as well (memory with more than one number per source)."""

    @register("remembering")
    class Remembering(Controller):
        decay: float = 0.9

        def initial_state(
            self, size: int, device: torch.device, base: SourceStatistics | None
        ) -> State:
            alpha = torch.zeros(size, dtype=torch.float64, device=device)
            return {
                "alpha": alpha if base is None else base.low,
                "p": alpha[:, None].expand(-1, BINS).clone(),
            }

        def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
            def ema(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
                return self.decay * old + (1 - self.decay) * new

            return {
                "alpha": ema(state["alpha"], statistics.low),
                "p": ema(state["p"], statistics.histogram),
            }
