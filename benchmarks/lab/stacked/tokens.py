"""What objectives read of the targets, and the gradient of the logits but for their weight."""

from collections.abc import Sequence

from torch import Tensor

from adaptsft_kernels import TokenStatistics
from adaptsft_kernels.row_kernels import LOWEST
from adaptsft_kernels.token_statistics import Sums, statistics_of
from adaptsft_kernels.torch_rows import on_request


def token_statistics(
    logits: Tensor, targets: Tensor, wanted: Sequence[str], sequence: Tensor
) -> tuple[TokenStatistics, Tensor]:
    """(statistics [n], p_i - delta_iy [n, V]) of logits [n, V]; `wanted` are statistics
    on request."""
    y = targets[:, None]
    target, others = logits.gather(1, y), logits.scatter(1, y, LOWEST)
    highest = others.amax(1)
    shifted = others - highest[:, None]
    e = shifted.exp()
    total, moment, square = e.sum(1), (e * shifted).sum(1), (e * e).sum(1)
    sums = Sums(target[:, 0], highest, highest, total, moment, square)
    requested = on_request(logits, targets, wanted)
    statistics = statistics_of(sums, requested, sequence, None)
    dz = e.mul_((statistics.one_minus_p / total)[:, None])
    return statistics, dz.scatter_(1, y, -statistics.one_minus_p[:, None])
