"""What the learning rate is scaled by where the token weights leave most of the gradient out.

K = E[weight (1 - p)] is the gradient that they keep, L = E[(1 - weight)(1 - p)] what they leave out
of NLL's, both per token of a source, and 0 where they would be negative. Weights are compared with
NLL's, 1: half of them everywhere is half of the gradient left out, though AdamW would not see it.
"""

import math

import torch
from torch import Tensor

from adaptsft.controllers.base import State
from adaptsft.statistics.step import SourceStatistics


def ema_decay(share: float, steps: int) -> float:
    """Decay per step of a running mean over this share of the run, at least a step."""
    return math.exp(-1.0 / max(share * steps, 1.0))


def running_mean(old: Tensor, new: Tensor, decay: float) -> Tensor:
    """An EMA from the first value on; a source without a token in the step keeps what it has."""
    moved = torch.where(old.isnan(), new, decay * old + (1.0 - decay) * new)
    return torch.where(new.isnan(), old, moved)


def running_gradient(state: State, statistics: SourceStatistics, decay: float) -> State:
    """`kept` and `left`, running means of K and L of each source, and its `tokens` of the run so
    far."""
    left = 1.0 - statistics.mean_p - statistics.pull
    return {
        "kept": running_mean(state["kept"], statistics.pull, decay),
        "left": running_mean(state["left"], left, decay),
        "tokens": state["tokens"] + statistics.tokens,
    }


def step_scale(state: State, share: Tensor | float) -> Tensor:
    """The mean over sources of K / (K + `share` L), by the gradient that each has kept so far; one
    number, repeated for all of them."""
    tokens = state["tokens"]
    kept = (tokens * state["kept"].clamp(min=0.0)).nan_to_num(0.0)[:-1]
    left = (tokens * state["left"].clamp(min=0.0) * share).nan_to_num(0.0)[:-1]
    least = torch.finfo(kept.dtype).tiny  # where nothing is kept nothing is learned
    own = kept / (kept + left).clamp(min=least)
    scale = (kept * own).sum() / kept.sum().clamp(min=least)
    return scale.expand_as(state["kept"])
