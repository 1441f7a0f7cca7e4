"""controller.name=auto."""

import math

import torch

from adaptsft.control import Signals
from adaptsft.controllers.base import Controller, Moment, State, full, register
from adaptsft.controllers.feedback import ema, ramp


@register("auto")
class Auto(Controller):
    """s = p^(A c)."""

    objective = "concentration"
    trust_low: float = 0.5
    trust_high: float = 0.6
    strong: float = 1.0
    lean: float = 2.0
    decay: float = 0.9
    floor_from: float = 0.5
    floor_to: float = 0.6
    window: float = 0.02

    def start(self, rows: int, device: torch.device, base: Signals | None) -> State:
        return {"precision": full(rows, math.nan, device), "alpha": full(rows, 0.0, device)}

    def update(self, state: State, seen: Signals, moment: Moment) -> State:
        precision = ema(state["precision"], seen.precision, self.decay)
        trust = ramp(precision, self.trust_low, self.trust_high)
        late = min(max((moment.progress - self.floor_from) / (self.floor_to - self.floor_from), 0.0), 1.0)
        return {"precision": precision, "alpha": self.strong * trust * (1 - late) + self.lean * late}
