"""What an objective may depend on besides the token itself."""

from typing import NamedTuple

import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig

# fields of ObjectiveState that a controller may move
MOVABLE = ("alpha", "lower", "upper", "floor")
# those that an objective may read
READABLE = (*MOVABLE, "mean_p", "sequence_nll")


class ObjectiveState(NamedTuple):
    """fp32, shape [sources], on the device; objectives get the fields gathered per token, [n].

    A controller moves `alpha`, `lower`, `upper` and `floor`. `mean_p` (mean probability of the
    targets, Eq. 5 of the paper) and `sequence_nll` (median of the sequence-mean NLL, nats per
    token) are the all-reduced statistics of the previous step. `mass` is the running mean of the
    token weights, the same for all sources, by which objective.unit_mass divides. `exempt` is 1 for
    tokens that objective.exempt leaves to NLL, see `with_exempt_tokens`.
    """

    alpha: Tensor
    lower: Tensor
    upper: Tensor
    floor: Tensor
    mean_p: Tensor
    sequence_nll: Tensor
    mass: Tensor
    exempt: Tensor


def initial_state(config: ObjectiveConfig, sources: int, device: torch.device) -> ObjectiveState:
    """That of step 1: mean_p .5 and 1 nat per token stand in for statistics not known yet."""
    values = (*(getattr(config, name) for name in MOVABLE), 0.5, 1.0, 1.0, 0.0)
    return ObjectiveState(
        *(torch.full((sources,), value, dtype=torch.float32, device=device) for value in values)
    )


def per_token(state: ObjectiveState, source: Tensor) -> ObjectiveState:
    """The state of every token: source int64 [n] -> fields [n]."""
    return ObjectiveState(*(field[source] for field in state))


def with_exempt_tokens(
    state: ObjectiveState, source: Tensor, targets: Tensor, exempt: Tensor | None
) -> tuple[ObjectiveState, Tensor]:
    """The state with fields [2 sources], and the index into them of every token, int64 [n]: targets
    among the ids `exempt` read a copy of their source's state that marks them."""
    if exempt is None:
        return state, source
    both = ObjectiveState(*(torch.cat([field, field]) for field in state))
    marks = torch.cat([torch.zeros_like(state.exempt), torch.ones_like(state.exempt)])
    # not torch.isin, which sorts, and waits for the device, from a few dozen ids on
    is_exempt = (targets[:, None] == exempt).any(1)
    return both._replace(exempt=marks), source + len(state.exempt) * is_exempt
