"""What the base model makes of each target token, and weights that read it instead of the model in
training."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from adaptsft.errors import require
from adaptsft.objectives.base import Objective, Result
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics


class Reference(NamedTuple):
    """`tokens.reference`: statistics of the target tokens under the base model, fp32 [n] each, with
    the meaning that they have in TokenStatistics."""

    logp: Tensor
    entropy: Tensor
    collision: Tensor
    top_logp: Tensor
    top_entropy: Tensor
    mass: Tensor


def under_reference(objective: Objective) -> Objective:
    """The weighted likelihood -weight log p with the weight, and the mask, that the objective has
    where its token statistics are those of the base model (objective.reference=base).

    Raises ConfigError where that means nothing.
    """
    require(
        (why := _unfit(objective)) is None,
        f"objective.reference=base: {objective.name} {why}; leave objective.reference out",
    )
    mask = objective.mask

    def function(tokens: TokenStatistics, state: ObjectiveState) -> Result:
        weight = objective.function(_as_reference(tokens), state)[1]
        return -weight * tokens.logp, weight

    def masked(tokens: TokenStatistics, state: ObjectiveState) -> Tensor:
        assert mask is not None
        return mask(_as_reference(tokens), state)

    return dataclasses.replace(
        objective,
        function=function,
        mask=masked if mask is not None else None,
        needs=frozenset({"reference"}),
    )


def _unfit(objective: Objective) -> str | None:
    """Why the objective cannot read the base model instead of the model in training, or None."""
    if "reference" in objective.needs:
        return "reads the base model by itself"
    if objective.name == "nll":
        return "gives every token the weight 1, whatever the model"
    if objective.name == "log1mp":
        return "has the weight p / (1-p), bounded only by the 1-p of the same model"
    if not objective.whole_batch and (read := objective.uses & {"mean_p", "sequence_nll"}):
        return (
            f"reads {min(read)} of the model in training, of the step before (its published form, "
            "objective.params.batch=1, reads the base model alone)"
        )
    return None


def _as_reference(tokens: TokenStatistics) -> TokenStatistics:
    """The statistics of the same tokens under the base model."""
    logp = tokens.reference.logp
    return TokenStatistics(
        logp=logp,
        one_minus_p=-torch.expm1(logp),
        entropy=tokens.reference.entropy,
        collision=tokens.reference.collision,
        top1=logp >= tokens.reference.top_logp,
        top_logp=tokens.reference.top_logp,
        top_entropy=tokens.reference.top_entropy,
        sequence=tokens.sequence,
        mass=tokens.reference.mass,
    )
