"""Feedback: every source is leant on when it has been learned."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import SourceStatistics


@register("when_learned")
class WhenLearned(Controller):
    """weight = floor + (1 - floor) p^(alpha c), as auto; but the floor of a source falls from
    `first` to `last`, over `length` of the run, from when the source has stopped improving: its
    top-1 share no longer rises (fast EMA - slow EMA < `rise`), and its confidence is borne out
    (mean p / mean c > `borne_out`). It falls from `latest` on in any case. alpha goes from 1 to
    `end` after `hold`.

    The top-1 share (targets that are the model's first choice) is what sharpening does not move:
    mean p rises when a model sharpens, whether it learns or not. The horizons of the EMAs are
    shares of the run, `fast` and `slow`, so that batches of any size are averaged as long.
    """

    objective = "concentration"
    moves = ("alpha", "floor")
    bounds: ClassVar = {
        **dict.fromkeys(("begin", "latest", "hold", "rise", "borne_out"), (0.0, 1.0)),
        **dict.fromkeys(("first", "last", "length", "fast", "slow"), (1e-6, 1.0)),
        "end": (0.0, 1e6),
    }
    first: float = 0.3
    last: float = 0.001
    begin: float = 0.1
    latest: float = 0.4
    length: float = 0.5
    hold: float = 0.8
    end: float = 2.0
    fast: float = 0.03
    slow: float = 0.1
    rise: float = 0.015
    borne_out: float = 0.5

    def check(self) -> str | None:
        ordered = self.begin <= self.latest and self.last <= self.first and self.fast < self.slow
        if ordered and self.hold < 1:
            return None
        return "begin <= latest, last <= first, fast < slow and hold < 1 must hold"

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        state = {name: full(size, math.nan, device) for name in ("top1", "slow_top1", "ratio")}
        if base is not None:
            state = {"top1": base.top1.clone(), "slow_top1": base.top1.clone()}
            state["ratio"] = base.mean_p / base.collision
        moved = {"since": math.nan, "alpha": 1.0, "floor": self.first}
        return state | {name: full(size, value, device) for name, value in moved.items()}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        share, top1 = progress.share, statistics.top1
        fast = ema(state["top1"], top1, decay(self.fast, progress.steps))
        slow = ema(state["slow_top1"], top1, decay(self.slow, progress.steps))
        borne_out = statistics.mean_p / statistics.collision
        ratio = ema(state["ratio"], borne_out, decay(self.fast, progress.steps))
        learned = (fast - slow < self.rise) & (ratio > self.borne_out)
        starts = (learned & (share >= self.begin)) | (share >= self.latest)
        now = torch.full_like(fast, share)
        since = torch.where(state["since"].isnan() & starts, now, state["since"])
        fallen = ((share - since) / self.length).clamp(0.0, 1.0).nan_to_num(0.0)
        sharp = max((share - self.hold) / (1.0 - self.hold), 0.0)
        return {
            "top1": fast,
            "slow_top1": slow,
            "ratio": ratio,
            "since": since,
            "alpha": torch.full_like(fast, 1.0 + (self.end - 1.0) * sharp),
            "floor": self.first ** (1.0 - fallen) * self.last**fallen,
        }


def decay(horizon: float, steps: int) -> float:
    """Of an EMA over a share `horizon` of the run, at least a step."""
    return math.exp(-1.0 / max(horizon * steps, 1.0))


def ema(old: Tensor, new: Tensor, decay: float) -> Tensor:
    """decay * old + (1 - decay) * new; the new value where there is no old one (NaN)."""
    return torch.where(old.isnan(), new, decay * old + (1.0 - decay) * new)
