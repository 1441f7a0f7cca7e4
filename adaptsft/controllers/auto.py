"""The default: a schedule. Learn with a floor under the weights, let the floor fall, then sharpen;
one setting for every regime."""

from typing import ClassVar

import torch

from adaptsft.controllers.base import Controller, Progress, State, full, register
from adaptsft.statistics.step import SourceStatistics


@register("auto")
class Auto(Controller):
    """weight = floor + (1 - floor) p^(alpha c): the floor falls geometrically from `first` to
    `last` between the shares `learn` and `hold` of the run; alpha is 1 until `hold` and goes to
    `end` from there.

    c = sum_i p_i^2 is what adapts, token by token: where the model is unsure the weight is near 1,
    as NLL's, and where it is sure it is near p. What a model is sure of and the targets contradict
    would then never be learned (DEFT fails there): the floor keeps the weight of such a token at
    30 % of that of any other while the model learns. It is taken away slowly, since the least
    likely targets of a model that has learned are mostly errors; the token's objective has one
    optimum, p in proportion to q^(1/(1-c)) for targets of frequencies q, until alpha passes 1, when
    whatever leads wins for good. Everything follows from the share of the run that is over: runs of
    100 and 10,000 steps have the same shape. No statistic of the model moves it.
    """

    objective = "concentration"
    moves = ("alpha", "floor")
    by_clock = True
    bounds: ClassVar = {
        **dict.fromkeys(("learn", "hold"), (0.0, 1.0)),
        **dict.fromkeys(("first", "last"), (1e-6, 1.0)),
        "end": (0.0, 1e6),
    }
    first: float = 0.3
    last: float = 0.001
    learn: float = 0.2
    hold: float = 0.7
    end: float = 2.0

    def check(self) -> str | None:
        right = self.learn < self.hold < 1 and self.last <= self.first
        return None if right else "learn < hold < 1 and last <= first must hold"

    def values(self, share: float) -> dict[str, float]:
        fallen = min(max((share - self.learn) / (self.hold - self.learn), 0.0), 1.0)
        sharp = max((share - self.hold) / (1.0 - self.hold), 0.0)
        return {
            "alpha": 1.0 + (self.end - 1.0) * sharp,
            "floor": self.first ** (1.0 - fallen) * self.last**fallen,
        }

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        return {name: full(size, v, device) for name, v in self.values(0.0).items()}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        values = self.values(progress.share)
        return {name: torch.full_like(old, values[name]) for name, old in state.items()}


@register("auto_rl")
class AutoForRL(Auto):
    """As auto, for what reinforcement learning goes on with: alpha stays at 1 and the floor ends at
    a tenth, which is meant to leave entropy, and has not been measured."""

    last: float = 0.1
    end: float = 1.0
