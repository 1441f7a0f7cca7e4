"""The default: every source is trusted as far as the model gives its targets their probability."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.controllers.step_scale import (
    ema_decay,
    running_gradient,
    running_mean,
    step_scale,
)
from adaptsft.statistics.step import SourceStatistics


@register("auto")
class Auto(Controller):
    """weight = floor + (1 - floor) p^(alpha sqrt(c)). Per source, with m the running mean of p and
    b the base model's, or m over the first `horizon` of the run: floor = `first` (1 - m)^2, alpha =
    `low` + (1 - `low`) min(m, max(b, t))^3 at the share t of the run. From `sharpen` on alpha goes
    to `end`, and from `fall` to `fallen` the floor falls to the share `last` of that. The learning
    rate is scaled by K / (K + b^`trust` L): K is the gradient that the weights keep, L what they
    leave out.

    m places a source on the continuum from weak to strong (Eq. 5 of arXiv:2510.00526) and moves
    along it as the source is learned: EMA over the share `horizon` of the run, from the first
    step's value, or the base model's where that was measured. Where m is near 1 the model knows
    better than the targets that contradict it, and the objective is near -p as soon as m is known.
    Where m is near 0 the contradicted token keeps a third of NLL's pull, and alpha is low. Both
    powers were found by search; they keep a half-known source (m = .5) near the weak end. What has
    just been learned is not leaned on as what the model brought along: alpha follows m no faster
    than the share of the run, so that the rest of a new source is learned too.

    c = sum_i p_i^2 acts within a source: a token about which the model is undecided has nearly
    NLL's weight. That leaves temperature 1 undecided too; hence the end, where alpha passes 1 and
    whatever leads wins for good. It follows from the share of the run alone, so that runs of 60 and
    10,000 steps have the same shape. The least likely targets are learned late, if they can be
    learned: hence the late fall of the floor.

    AdamW's steps are as long for a small gradient as for a large one: what is left of a source that
    is known, mostly noise, would move the weights as far as all of it. So the step that the
    gradient left out of a known source would have taken is not taken.
    """

    objective = "concentration"
    moves = ("alpha", "floor")
    scales_lr = True
    bounds: ClassVar = {
        **dict.fromkeys(("first", "last", "low", "sharpen", "fall", "fallen"), (0.0, 1.0)),
        "horizon": (1e-6, 1.0),
        "end": (0.0, 1e6),
        "trust": (0.0, 1e6),
    }
    first: float = 0.3
    last: float = 0.003
    low: float = 0.3
    end: float = 2.0
    sharpen: float = 0.5
    fall: float = 0.4
    fallen: float = 0.9
    horizon: float = 0.03
    trust: float = 6.0

    def check(self) -> str | None:
        if self.fall < self.fallen and self.sharpen < 1 and self.last > 0:
            return None
        return "fall < fallen, sharpen < 1 and last > 0 must hold"

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        unknown = full(size, math.nan, device)
        mean_p = unknown if base is None else base.mean_p
        state = {name: unknown.clone() for name in ("kept", "left")}
        state |= {name: mean_p.clone() for name in ("mean_p", "base_p")}
        state |= {"tokens": full(size, 0.0, device), "lr_scale": full(size, 1.0, device)}
        state["measured"] = full(size, float(base is not None), device)
        return state | self._objective(mean_p, mean_p, 0.0)

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        decay = ema_decay(self.horizon, progress.steps)
        mean_p = running_mean(state["mean_p"], statistics.mean_p, decay)
        beginning = (progress.share <= self.horizon) & (state["measured"] == 0)
        base_p = torch.where(state["base_p"].isnan() | beginning, mean_p, state["base_p"])
        new = {"mean_p": mean_p, "base_p": base_p, "measured": state["measured"]}
        new |= running_gradient(state, statistics, decay)
        new["lr_scale"] = step_scale(new, base_p**self.trust)
        return new | self._objective(mean_p, base_p, progress.share)

    def _objective(self, mean_p: Tensor, base_p: Tensor, share: float) -> State:
        sharp = max((share - self.sharpen) / (1.0 - self.sharpen), 0.0)
        fallen = min(max((share - self.fall) / (self.fallen - self.fall), 0.0), 1.0)
        known = mean_p.nan_to_num(0.0)  # a source not seen yet is taken for a weak one
        leaned_on = known.minimum(base_p.nan_to_num(0.0).clamp(min=share))
        alpha = self.low + (1.0 - self.low) * leaned_on**3
        return {
            "alpha": alpha + (self.end - alpha) * sharp,
            "floor": self.first * (1.0 - known) ** 2 * self.last**fallen,
        }


@register("auto_rl")
class AutoForRL(Auto):
    """As auto, for what reinforcement learning goes on with: alpha ends at 1, which leaves more
    entropy."""

    end: float = 1.0
