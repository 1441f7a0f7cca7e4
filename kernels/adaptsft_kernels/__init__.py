"""Fused linear layer and objective: per-token statistics and gradients, and never all logits."""

from adaptsft_kernels.implementations import choose_implementation, describe_implementation
from adaptsft_kernels.linear_objective import linear_objective
from adaptsft_kernels.token_statistics import TokenOutputs, TokenStatistics

__all__ = [
    "TokenOutputs",
    "TokenStatistics",
    "choose_implementation",
    "describe_implementation",
    "linear_objective",
]
