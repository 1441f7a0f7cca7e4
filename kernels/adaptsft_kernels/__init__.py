"""Fused linear layer and objective: per-token statistics and gradients, and never all logits."""

from adaptsft_kernels.cross_entropy import LinearCrossEntropy, linear_cross_entropy
from adaptsft_kernels.implementations import choose_implementation, describe_implementation
from adaptsft_kernels.linear_objective import linear_objective
from adaptsft_kernels.log_probs import linear_logprobs, linear_rows, linear_rows_backward
from adaptsft_kernels.token_statistics import TokenOutputs, TokenStatistics

__all__ = [
    "LinearCrossEntropy",
    "TokenOutputs",
    "TokenStatistics",
    "choose_implementation",
    "describe_implementation",
    "linear_cross_entropy",
    "linear_logprobs",
    "linear_objective",
    "linear_rows",
    "linear_rows_backward",
]
