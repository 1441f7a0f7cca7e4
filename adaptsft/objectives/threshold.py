"""A hard threshold on p, over any objective."""

import dataclasses

import torch
from torch import Tensor

from adaptsft.objectives.base import Objective, Result
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics


def threshold(base: Objective) -> Objective:
    """loss: base loss where lower <= p <= upper, else 0
    weight: base weight where lower <= p <= upper, else 0

    A hard mask, under stop-gradient, on any base objective (default nll). Quantile thresholds are
    this one, with the quantiles of the base model's p as lower and upper. Source: arXiv:2510.00526.
    The paper divides by the kept tokens; see objective.normalizer.
    """

    def inside(tokens: TokenStatistics, state: ObjectiveState) -> Tensor:
        return (tokens.logp >= state.lower.log()) & (tokens.logp <= state.upper.log())

    def mask(tokens: TokenStatistics, state: ObjectiveState) -> Tensor:
        kept = inside(tokens, state)
        return kept if base.mask is None else kept & base.mask(tokens, state)

    def function(tokens: TokenStatistics, state: ObjectiveState) -> Result:
        kept, (loss, weight) = inside(tokens, state), base(tokens, state)
        return torch.where(kept, loss, 0.0), torch.where(kept, weight, 0.0)

    return dataclasses.replace(
        base, name="threshold", function=function, mask=mask, uses=base.uses | {"lower", "upper"}
    )
