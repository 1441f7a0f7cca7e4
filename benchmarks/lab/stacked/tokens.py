"""What objectives read of the targets, and the gradient of the logits but for their weight."""

from torch import Tensor

from adaptsft_kernels import TokenStatistics
from adaptsft_kernels.row_kernels import LOWEST
from adaptsft_kernels.token_statistics import Sums, statistics_of
from adaptsft_kernels.torch_rows import entropy_of_top


def token_statistics(
    logits: Tensor, targets: Tensor, top: bool, sequence: Tensor
) -> tuple[TokenStatistics, Tensor]:
    """(statistics [n], p_i - delta_iy [n, V]) of logits [n, V]; `top`: top_entropy too."""
    y = targets[:, None]
    target, others = logits.gather(1, y), logits.scatter(1, y, LOWEST)
    highest = others.max(1, keepdim=True).values
    shifted = others - highest
    e = shifted.exp()
    total = e.sum(1)
    sums = Sums(target[:, 0], highest[:, 0], total, (e * shifted).sum(1), (e * e).sum(1))
    statistics = statistics_of(sums, entropy_of_top(logits) if top else None, sequence)
    dz = e.mul_((statistics.one_minus_p / total)[:, None])
    return statistics, dz.scatter_(1, y, -statistics.one_minus_p[:, None])
