"""The default: learn first, then lean on what was learned, then sharpen; one setting for every
regime."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import SourceStatistics


@register("auto")
class Auto(Controller):
    """weight = p^(A c), A = T (lean + sharpen): lean goes from 0 to 1 between `learn` and `leant`
    of the run, sharpen from 0 to `end` - 1 between `hold` and its end;
    T = clip((k - low) / (high - low), 0, 1), k = mean p / mean c of the source.

    A = 0 is NLL: what the base model does not know, or knows wrongly, is learned. At A = 1 (DEFT) a
    token's exponent c is below 1, where the objective has one optimum, p in proportion to
    q^(1/(1-c)) for targets of frequencies q: it leans on the more frequent target and can still
    change its mind. Above 1 whatever leads wins for good, so that comes last. A calibrated model
    has mean p = mean c; k far below 1 says that the model is sure of what the targets contradict:
    such a source is learned before it is leant on. k is an EMA over steps. All else depends on the
    share of the run that is over: runs of 100 and 10,000 steps have the same shape.
    """

    objective = "concentration"
    bounds: ClassVar = {
        **dict.fromkeys(("learn", "leant", "hold", "decay"), (0.0, 1.0)),
        **dict.fromkeys(("end", "low", "high"), (0.0, 1e6)),
    }
    learn: float = 0.2
    leant: float = 0.5
    hold: float = 0.8
    end: float = 2.0
    low: float = 0.3
    high: float = 0.5
    decay: float = 0.9

    def check(self) -> str | None:
        ordered = 0 <= self.learn < self.leant <= self.hold < 1 and self.low < self.high
        if ordered and self.end >= 1 and self.decay < 1:
            return None
        return "0 <= learn < leant <= hold < 1, low < high, end >= 1 and decay < 1 must hold"

    def amplitude(self, share: float) -> float:
        lean = min(max((share - self.learn) / (self.leant - self.learn), 0.0), 1.0)
        return lean + (self.end - 1.0) * max((share - self.hold) / (1.0 - self.hold), 0.0)

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        ratio = full(size, math.nan, device) if base is None else base.mean_p / base.collision
        return {"ratio": ratio, "alpha": full(size, 0.0, device)}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        ratio = ema(state["ratio"], statistics.mean_p / statistics.collision, self.decay)
        alpha = self.amplitude(progress.share) * ramp(ratio, self.low, self.high)
        return {"ratio": ratio, "alpha": alpha}


def ramp(x: Tensor, low: float, high: float) -> Tensor:
    """0 below low, 1 above high, straight between."""
    return ((x - low) / (high - low)).clamp(0.0, 1.0)


def ema(old: Tensor, new: Tensor, decay: float) -> Tensor:
    """decay * old + (1 - decay) * new; the new value where there is no old one (NaN)."""
    return torch.where(old.isnan(), new, decay * old + (1.0 - decay) * new)
