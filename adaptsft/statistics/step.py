"""Token-probability statistics of an optimizer step, per source: counted on the device, summed over
ranks by one all-reduce.

All target tokens count, also those that the objective masks. Sums are fp64 and histograms count in
whole numbers, so that the result does not depend on how the tokens were split into ranks and
micro-batches beyond the rounding of p itself.
"""

import math
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from adaptsft_kernels import TokenOutputs

# Sums over the target tokens of a source: of p, the NLL, the objective's loss, its token weight;
# how many have p below .2, …; collision is c = sum_i p_i^2, pull = weight (1 - p) the gradient with
# respect to the target's logit, without the weights of turns. `sequences` counts examples.
COLUMNS = ("tokens", "kept", "p", "nll", "loss", "weight", "below_0.2", "above_0.5", "above_0.55")
COLUMNS += ("top1", "entropy", "collision", "pull", "sequences")
BINS = 256
# The histogram of log p has equal steps of log-odds: log p - log(1 - p) is log p itself where p is
# small and keeps resolving where p nears 1, as most tokens of a strong model do.
LOGIT_RANGE = (-24.0, 24.0)
# The histogram of the sequence-mean NLL (nats per token) has equal steps of its logarithm.
LOG_NLL_RANGE = (-9.0, 4.0)


class SourceStatistics(NamedTuple):
    """Statistics of a step, as controllers see them: fp64, an entry per source and a last one for
    all of them together; NaN where a source had no token. Shares are of the target tokens."""

    tokens: Tensor
    mean_p: Tensor
    low: Tensor  # share with p < .2
    high: Tensor  # share with p > .5
    top1: Tensor  # share that is the model's first choice: no other token is likelier
    collision: Tensor  # mean of c = sum_i p_i^2
    pull: Tensor  # mean of weight (1 - p); that of NLL is 1 - mean_p
    sequence_nll: Tensor  # median over sequences of their mean NLL, nats per token
    # [sources + 1, BINS] of p in equal steps of log-odds over LOGIT_RANGE, shares
    histogram: Tensor


class Origins(Protocol):
    """Where n target tokens in m sequences come from, as a Batch says it."""

    @property
    def source(self) -> Tensor: ...  # int64 [n]
    @property
    def sequence_lengths(self) -> Tensor: ...  # int64 [m], none of them 0
    @property
    def sequence_source(self) -> Tensor: ...  # int64 [m]
    @property
    def token_weight(self) -> Tensor | None: ...  # fp32 [n]


class StepStatistics:
    """Sums and histograms of one step. `buffer` is the vector that is all-reduced; `table` is its
    view [sources, columns].

    Columns: COLUMNS, then BINS of log p, then BINS of the sequence-mean NLL. `others` are sums of
    somebody else's, and the vector's last element counts ranks asked to stop. `counts`: whether
    `add` does; of ranks that know the same tokens (train.context_parallel) one.
    """

    def __init__(self, sources: int, device: torch.device, counts: bool = True):
        self.sources, self.device, self.counts = sources, device, counts
        self.width = len(COLUMNS) + 2 * BINS
        self.make_room(0)

    def make_room(self, others: int) -> None:
        """Start again, with so many `others`."""
        own = self.sources * self.width
        self.buffer = torch.zeros(own + others + 1, dtype=torch.float64, device=self.device)
        self.table = self.buffer[:own].view(self.sources, self.width)
        self.others, self.stop = self.buffer[own:-1], self.buffer[-1]

    def reset(self) -> None:
        """Before the first micro-batch of a step."""
        self.buffer.zero_()

    def add(self, tokens: TokenOutputs, kept: Tensor, batch: Origins) -> None:
        """Count the target tokens of a micro-batch; `kept` bool [n]: those the objective keeps."""
        if not self.counts or tokens.logp.numel() == 0:
            return
        p, nll = tokens.logp.exp(), -tokens.logp
        features = (torch.ones_like(p), kept, p, nll, tokens.loss, tokens.weight)
        features += (p < 0.2, p > 0.5, p > 0.55, tokens.top1, tokens.entropy, tokens.collision)
        pull, own = tokens.weight * tokens.one_minus_p, batch.token_weight
        features += (pull if own is None else torch.where(own == 0, 0.0, pull / own),)
        sums = torch.stack([feature.double() for feature in features], dim=1)
        sources = torch.arange(self.table.shape[0], device=p.device)
        # a product with the one-hot matrix, not index_add: its order of summation is fixed, also
        # on a GPU
        membership = (batch.source == sources[:, None]).double()
        self.table[:, : sums.shape[1]] += membership @ sums
        in_source = (batch.sequence_source == sources[:, None]).double()
        self.table[:, COLUMNS.index("sequences")] += in_source.sum(1)
        sequence_nll = torch.segment_reduce(
            nll.double(), "mean", lengths=batch.sequence_lengths, unsafe=True
        )
        odds = log_odds(tokens.logp, tokens.one_minus_p)
        self._count(len(COLUMNS), odds, LOGIT_RANGE, batch.source)
        self._count(len(COLUMNS) + BINS, sequence_nll.log(), LOG_NLL_RANGE, batch.sequence_source)

    def _count(
        self, column: int, values: Tensor, limits: tuple[float, float], source: Tensor
    ) -> None:
        cell = source * self.width + column + bin_index(values, limits, BINS)
        self.buffer.index_add_(0, cell, torch.ones_like(cell, dtype=torch.float64))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over all ranks (of the group): the only collective that statistics, counts and the
        stop flag need in a step. A single rank has the sum already."""
        if dist.is_initialized() and dist.get_world_size(group) > 1:
            dist.all_reduce(self.buffer, group=group)

    def column(self, name: str) -> Tensor:
        """Sums of a column, fp64 [sources]."""
        return self.table[:, COLUMNS.index(name)]

    def per_source(self) -> SourceStatistics:
        """What controllers see."""
        table = torch.cat([self.table, self.table.sum(0, keepdim=True)])
        sums = dict(zip(COLUMNS, table[:, : len(COLUMNS)].unbind(1), strict=True))
        tokens = sums["tokens"]
        return SourceStatistics(
            tokens=tokens,
            mean_p=sums["p"] / tokens,
            low=sums["below_0.2"] / tokens,
            high=sums["above_0.5"] / tokens,
            top1=sums["top1"] / tokens,
            collision=sums["collision"] / tokens,
            pull=sums["pull"] / tokens,
            sequence_nll=histogram_quantile(table[:, -BINS:], 0.5, LOG_NLL_RANGE).exp(),
            histogram=table[:, len(COLUMNS) : len(COLUMNS) + BINS] / tokens[:, None],
        )


def log_odds(logp: Tensor, one_minus_p: Tensor) -> Tensor:
    return logp - one_minus_p.log()


def bin_index(values: Tensor, limits: tuple[float, float], bins: int) -> Tensor:
    """Index of the bin of each value, int64; values beyond the limits fall into the outermost bins,
    NaN into the first."""
    low, high = limits
    position = (values.double() - low) * (bins / (high - low))
    return position.nan_to_num(0.0, posinf=bins, neginf=0.0).clamp(0, bins - 1).long()


def running_sums(counts: Tensor) -> Tensor:
    """counts.cumsum(1) by sums of whole numbers, which come in any order to the same bits. counts
    fp64 [sources, bins], none below 0 -> fp64 of the same shape.

    A floating-point cumsum on CUDA has no fixed order, and is an error under
    torch.use_deterministic_algorithms(True); one of int64 is always allowed. The unit is 2^-24:
    whole counts are summed exactly, up to 2^39 in all, and the shares of a running mean to 6e-8.
    """
    unit = 2.0**24
    sums = (counts * unit).round().long().cumsum(1).double() / unit
    return torch.where(counts.isnan(), counts, sums)  # a source not seen yet: NaN in every bin


def histogram_quantile(counts: Tensor, q: float, limits: tuple[float, float]) -> Tensor:
    """Quantile of the binned values, linear within a bin. counts [sources, bins] -> [sources]; NaN
    where a source has no counts."""
    low, high = limits
    step = (high - low) / counts.shape[1]
    total = running_sums(counts) if counts.is_cuda else counts.cumsum(1)
    target = q * total[:, -1:]
    index = torch.searchsorted(total, target.clamp(min=1e-9)).clamp(max=counts.shape[1] - 1)
    inside = total.gather(1, index)
    count = counts.gather(1, index)
    value = low + step * (index + 1 - (inside - target) / count)
    return value.squeeze(1)


def p_of_bin_edges() -> list[float]:
    """The BINS + 1 edges of the histogram of log p, as probabilities."""
    low, high = LOGIT_RANGE
    return [1 / (1 + math.exp(-(low + (high - low) * i / BINS))) for i in range(BINS + 1)]
