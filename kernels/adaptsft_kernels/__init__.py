"""Fused linear + objective loss: per-token statistics and gradients without ever holding [tokens, vocabulary] logits."""

from adaptsft_kernels.linear_objective import Rows, RowStatistics, linear_objective

__all__ = ["RowStatistics", "Rows", "linear_objective"]
