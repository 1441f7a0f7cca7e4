"""Schedules: alpha or a threshold as a function of the progress of the run. They serve users who
know the regime, and as baselines.

A new schedule is a Schedule with `shape` (or `value`) and `@register("name")` above it; fields that
it declares are set by `controller.params`, as those of any controller.
"""

import dataclasses
import itertools
import math
from typing import ClassVar

import torch

from adaptsft.config.schema import ControllerConfig
from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import SourceStatistics


@dataclasses.dataclass(frozen=True)
class Schedule(Controller):
    """value = start + (end - start) * shape, the same for every source.

    A subclass with another `value` lists in `reads` the keys of `settings` that it looks at.
    """

    by_clock = True
    reads: ClassVar[tuple[str, ...]] = ("parameter", "start", "end", "begin", "finish")
    settings: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)

    def moved_fields(self) -> tuple[str, ...]:
        return (self.settings.parameter,)

    def value(self, progress: Progress) -> float:
        start, end = self.settings.start, self.settings.end
        return start + (end - start) * self.shape(progress)

    def shape(self, progress: Progress) -> float:
        """Share of the way from start to end, in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} has no shape")

    def elapsed(self, progress: Progress) -> float:
        """Share of the time between begin and finish that is over."""
        begin, finish = self.settings.begin, self.settings.finish
        if begin >= finish:
            return float(progress.share >= finish)
        return min(max((progress.share - begin) / (finish - begin), 0.0), 1.0)

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        first = Progress(step=0, steps=2, lr=1.0, warming=True)
        return {self.settings.parameter: full(size, self.value(first), device)}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        return {name: torch.full_like(old, self.value(progress)) for name, old in state.items()}


@register("linear")
class Linear(Schedule):
    """shape = the share of the time between begin and finish that is over."""

    def shape(self, progress: Progress) -> float:
        return self.elapsed(progress)


@register("cosine")
class Cosine(Schedule):
    """shape = (1 - cos(pi share)) / 2: slow at both ends."""

    def shape(self, progress: Progress) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * self.elapsed(progress))


@register("lr")
class LearningRate(Schedule):
    """shape = 1 - lr / peak lr, 0 in warm-up: the objective sharpens as the learning rate falls."""

    reads = ("parameter", "start", "end")

    def shape(self, progress: Progress) -> float:
        return 0.0 if progress.warming else 1.0 - progress.lr


@register("piecewise")
class Piecewise(Schedule):
    """Straight lines between controller.points = [[progress, value], …], constant before the first
    and after the last."""

    reads = ("parameter", "points")

    def value(self, progress: Progress) -> float:
        points = self.settings.points
        if progress.share <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if progress.share < x1:
                return y0 + (y1 - y0) * (progress.share - x0) / (x1 - x0)
        return points[-1][1]
