"""What an objective may depend on besides the token itself, and what a controller sees of a step."""

from typing import NamedTuple

import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig


class ObjectiveState(NamedTuple):
    """What an objective may depend on besides the token itself. fp32, shape [sources], on the device.

    `alpha`, `lower` and `upper` are moved by the controller. `mean_p` (mean probability of the targets, Eq. 5 of the paper) and
    `sequence_nll` (median of the sequence-mean NLL, nats per token) are the all-reduced statistics of the previous step. `mass` is
    the running mean of the weights s over all tokens, the same for all sources, which objective.unit_mass divides by.
    `exempt` is 1 for tokens that objective.exempt leaves to NLL, see `controls`.
    """

    alpha: Tensor
    lower: Tensor
    upper: Tensor
    mean_p: Tensor
    sequence_nll: Tensor
    mass: Tensor
    exempt: Tensor


def initial_state(config: ObjectiveConfig, sources: int, device: torch.device) -> ObjectiveState:
    """The control of step 1, before any statistic is known: mean_p 0.5 and 1 nat per token stand in for the two signals."""

    def full(value: float) -> Tensor:
        return torch.full((sources,), value, dtype=torch.float32, device=device)

    return ObjectiveState(
        full(config.alpha),
        full(config.lower),
        full(config.upper),
        full(0.5),
        full(1.0),
        full(1.0),
        full(0.0),
    )


def per_token(control: ObjectiveState, source: Tensor) -> ObjectiveState:
    """The control of every token: source int64 [n] -> fields [n]."""
    return ObjectiveState(*(field[source] for field in control))


def controls(
    control: ObjectiveState, source: Tensor, targets: Tensor, exempt: Tensor | None
) -> tuple[ObjectiveState, Tensor]:
    """The control [2 sources] and the row of every token in it, int64 [n]: tokens whose label is among `exempt` read a copy of their
    source's control that says so."""
    if exempt is None:
        return control, source
    both = ObjectiveState(*(torch.cat([field, field]) for field in control))
    both = both._replace(
        exempt=torch.cat([torch.zeros_like(control.exempt), torch.ones_like(control.exempt)])
    )
    # not torch.isin, which sorts, and waits for the device, from a few dozen ids on
    return both, source + len(control.exempt) * (targets[:, None] == exempt).any(1)


class SourceStatistics(NamedTuple):
    """Statistics of a step: fp64, one row per source and a last one for all of them; NaN where a source had no token.

    Shares are of the target tokens. `histogram` counts p in steps of log-odds (adaptsft.statistics.step.LOGIT_RANGE). The base_ fields
    need the base model's own probability of every token (controller.base_logp) and count 0 tokens without it.
    """

    tokens: Tensor
    mean_p: Tensor
    nll: Tensor  # nats per token
    low: Tensor  # share with p < .2
    high: Tensor  # share with p > .5
    top1: Tensor  # share whose target no other token beats
    collision: Tensor  # mean of c = sum_i p_i^2
    precision: Tensor  # mean of top1 weighted by c: where the model is sure, how often it is right
    sequence_nll: Tensor  # median over sequences of their mean NLL
    histogram: Tensor  # [sources + 1, BINS], shares of the tokens
    base_low_tokens: Tensor  # tokens with p < .2 under the base model
    base_low_nll: Tensor  # their NLL now, nats per token
    base_high_tokens: Tensor  # tokens with p > .5 under the base model
    base_high_nll: Tensor
