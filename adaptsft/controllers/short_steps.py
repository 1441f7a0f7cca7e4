"""Shorter steps where the token weights leave most of the gradient out."""

import math
from typing import ClassVar

import torch

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.controllers.step_scale import ema_decay, running_gradient, step_scale
from adaptsft.statistics.step import SourceStatistics


@register("short_steps")
class ShortSteps(Controller):
    """The objective stays as it is; the learning rate is scaled by K / (K + L), K = E[weight (1 -
    p)] the gradient that its weights keep, L = E[(1 - weight)(1 - p)] what they leave out of NLL's.

    For an objective that preserves, as -p where the model is strong. AdamW's steps are as long for
    a small gradient as for a large one, and what -p leaves of the gradient of a source that is
    known is mostly noise. The step that the rest would have taken is not taken. K and L are running
    means over the share `horizon` of the run. What is new to the model is hardly learned.
    """

    objective = "neg_p"
    moves = ()
    scales_lr = True
    bounds: ClassVar = {"horizon": (1e-6, 1.0)}
    horizon: float = 0.03

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        unknown = full(size, math.nan, device)
        state = {"kept": unknown, "left": unknown.clone(), "tokens": full(size, 0.0, device)}
        return state | {"lr_scale": full(size, 1.0, device)}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        new = running_gradient(state, statistics, ema_decay(self.horizon, progress.steps))
        return new | {"lr_scale": step_scale(new, 1.0)}
