"""What the summed loss of a step is divided by."""

import torch
from torch import Tensor

from adaptsft.config.schema import Config
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import data_ranks
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.step import StepStatistics

LARGEST_MASS_CORRECTION = 4.0  # of objective.unit_mass, either way


class LossNormalizer:
    """train.loss_reduction=step divides by the target tokens of the whole step, whose number the
    sampler knows before any forward pass. objective.normalizer=kept and objective.unit_mass, known
    after it, then correct the gradients.

    train.loss_reduction=micro_batch averages each micro-batch over its own tokens and sums the
    gradients, as the code of arXiv:2510.00526 does (docs/strict_reproduction.md).
    """

    def __init__(self, config: Config):
        self.per_micro_batch = config.train.loss_reduction == "micro_batch"
        self.kept_only = config.objective.normalizer == "kept"
        self.unit_mass = config.objective.unit_mass
        self.context_parallel = config.train.context_parallel
        self.scale = 1.0

    def start_step(self, step: int, data: TrainingData) -> None:
        """Set `scale`, the factor of the summed loss of the step's micro-batches."""
        if self.per_micro_batch:
            _, ranks = data_ranks(self.context_parallel)
            self.scale = 1.0 / ranks
        else:
            self.scale = 1.0 / data.sampler.target_tokens(step)

    def micro_batch_loss(self, loss: Tensor, kept: Tensor) -> Tensor:
        """The loss (0-d) to differentiate; `kept` bool [n], counted on the device."""
        if not self.per_micro_batch:
            return loss
        return loss / (kept if self.kept_only else torch.ones_like(kept)).sum().clamp(min=1)

    def uncorrected(self, state: ObjectiveState) -> Tensor | float:
        """What a loss is multiplied by that the step's `correction` must not change."""
        return self._mass(state) if self.unit_mass else 1.0

    def correction(self, statistics: StepStatistics, state: ObjectiveState) -> Tensor:
        """The factor of the step's gradients, 0-d fp32, from its all-reduced statistics."""
        tokens = statistics.column("tokens").sum()
        factor = torch.ones_like(tokens)
        if self.kept_only and not self.per_micro_batch:
            factor = tokens / statistics.column("kept").sum().clamp(min=1.0)
        if self.unit_mass:
            factor = factor / self._mass(state)
        return factor.float()

    def _mass(self, state: ObjectiveState) -> Tensor:
        return state.mass[0].clamp(1 / LARGEST_MASS_CORRECTION, LARGEST_MASS_CORRECTION)
