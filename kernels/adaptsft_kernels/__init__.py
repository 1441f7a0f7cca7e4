"""Fused linear + objective loss: per-token statistics and gradients without ever holding [tokens, vocabulary] logits."""

from adaptsft_kernels.linear_objective import (
    choose_implementation,
    describe_implementation,
    dropped_share,
    linear_objective,
)
from adaptsft_kernels.rows import TokenOutputs, TokenStatistics

__all__ = [
    "TokenOutputs",
    "TokenStatistics",
    "choose_implementation",
    "describe_implementation",
    "dropped_share",
    "linear_objective",
]
