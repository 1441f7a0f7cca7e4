"""Schedules: alpha or a threshold as a function of the progress of the run. What a user who knows the regime wants, and baselines."""

import dataclasses
import itertools
import math

import torch

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import SourceStatistics


@dataclasses.dataclass(frozen=True)
class Schedule(Controller):
    """value = start + (end - start) * shape, the same for every source. Its settings are keys of their own (controller.start, …)."""

    parameter: str = "alpha"
    start_value: float = 0.0
    end_value: float = 1.0
    begin: float = 0.0
    finish: float = 1.0
    points: tuple[tuple[float, float], ...] = ()

    def moved_fields(self) -> tuple[str, ...]:
        return (self.parameter,)

    def value(self, moment: Progress) -> float:
        return self.start_value + (self.end_value - self.start_value) * self.shape(moment)

    def shape(self, moment: Progress) -> float:
        """Share of the way from start to end, in [0, 1]."""
        raise NotImplementedError

    def share(self, moment: Progress) -> float:
        """Share of the time between begin and finish that is over."""
        span = self.finish - self.begin
        return (
            min(max((moment.progress - self.begin) / span, 0.0), 1.0)
            if span > 0
            else float(moment.progress >= self.finish)
        )

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        first = Progress(0, 2, 1.0, True)
        return {self.parameter: full(rows, self.value(first), device)}

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        return {self.parameter: torch.full_like(state[self.parameter], self.value(moment))}


@register("linear")
class Linear(Schedule):
    """shape = the share of the time between begin and finish that is over."""

    def shape(self, moment: Progress) -> float:
        return self.share(moment)


@register("cosine")
class Cosine(Schedule):
    """shape = (1 - cos(pi share)) / 2: slow at both ends."""

    def shape(self, moment: Progress) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * self.share(moment))


@register("lr")
class LearningRate(Schedule):
    """shape = 1 - lr / peak lr, 0 during warm-up: the objective sharpens as the learning rate falls."""

    def shape(self, moment: Progress) -> float:
        return 0.0 if moment.warming else 1.0 - moment.lr


@register("piecewise")
class Piecewise(Schedule):
    """Straight lines between controller.points = [[progress, value], …], constant before the first and after the last."""

    def value(self, moment: Progress) -> float:
        points = self.points
        if moment.progress <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if moment.progress < x1:
                return y0 + (y1 - y0) * (moment.progress - x0) / (x1 - x0)
        return points[-1][1]
