"""What a row of logits comes down to: five sums, and everything that an objective may ask for, computed from them.

The target is kept out of the running sum. With u = logsumexp(other logits) - z_y:  log p = -softplus(u),  1 - p = sigmoid(u),
p_i = (1 - p) softmax(others)_i. No difference of nearly equal numbers occurs, so 1 - p and p_y - 1 keep their relative accuracy
where fp32 `p - 1` is zero.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30  # stands for -inf; finite, so that 0 * LOWEST is 0 and not NaN
TOP_K = 20  # EAFT (arXiv:2601.02151) takes the entropy of this many likeliest tokens


class TokenStatistics(NamedTuple):
    """What an objective may look at: one entry per row, detached; fp32, or fp64 for fp64 inputs."""

    logp: Tensor  # log p of the target, nats
    one_minus_p: Tensor  # 1 - p, with full relative accuracy near p = 1
    entropy: Tensor  # H = -sum_i p_i log p_i, nats
    collision: Tensor  # sum_i p_i^2
    top1: Tensor  # bool: no other token is likelier than the target
    top_logp: Tensor  # log p of the likeliest token, nats
    top_entropy: Tensor | None = (
        None  # entropy of the 20 likeliest tokens, renormalised; only if the objective needs "top_entropy"
    )
    sequence: Tensor | None = (
        None  # int64 index of the row's sequence within this call, where the caller gave it
    )


class TokenOutputs(NamedTuple):
    """Returned for every valid row, in order, detached: [n_valid]."""

    logp: Tensor
    one_minus_p: Tensor
    entropy: Tensor
    collision: Tensor
    top1: Tensor
    top_logp: Tensor
    loss: Tensor  # the objective's loss of the row, before `scale`
    weight: Tensor  # s


class Sums(NamedTuple):
    """Of each row, in the accumulators' dtype [n]; i runs over all tokens but the target."""

    target: Tensor  # z_y
    highest: Tensor  # max_i z_i; LOWEST where there is no other token
    total: Tensor  # sum_i exp(z_i - highest), at least 1
    moment: Tensor  # sum_i exp(z_i - highest) (z_i - highest)
    square: Tensor  # sum_i exp(z_i - highest)^2


class Head(NamedTuple):
    """The linear map to logits, z = cap tanh(logit_scale (x W^T + b) / cap)."""

    weight: Tensor  # [V,D]
    bias: Tensor | None  # [V]
    softcap: float | None
    logit_scale: float


class RowKernels(Protocol):
    """An implementation of the two passes over a chunk's logits; `sums` first, then `gradient` of the same rows or of none."""

    capacity: int  # rows of dz that may wait for `take`; 0: those of one chunk, to be taken before the next `sums`

    def sums(self, x: Tensor, y: Tensor, top: bool) -> tuple[Sums, Tensor | None]:
        """Logits of x [n,D], targets y [n] -> their sums, and the entropy of the TOP_K likeliest tokens if `top`."""
        ...

    def gradient(
        self,
        y: Tensor,
        highest: Tensor,
        at_others: Tensor,
        at_target: Tensor,
        active: Tensor | None,
    ) -> None:
        """Append dz: at_others exp(z_i - highest), and at_target at y, times the soft cap's slope, of the rows `active` (None: all)."""
        ...

    def take(self) -> Tensor:
        """All appended dz, [k,V]; the next `gradient` begins anew."""
        ...


def rows_of(sums: Sums, top_entropy: Tensor | None, sequence: Tensor | None) -> TokenStatistics:
    # few operations: on a GPU each takes about as long on a thousand rows as to launch, chunk after chunk
    log_total, gap = sums.total.log(), sums.highest - sums.target
    u = log_total + gap
    one_minus_p, logp = torch.sigmoid(u), F.logsigmoid(-u)
    p, q = logp.exp(), one_minus_p / sums.total  # q: of the likeliest other token
    # H = H2(p) + (1-p) H(others), with H(others) = log total - moment / total
    entropy = torch.special.entr(one_minus_p).addcmul_(
        one_minus_p, torch.addcdiv(log_total, sums.moment, sums.total, value=-1)
    )
    entropy.addcmul_(p, logp, value=-1)
    collision = (p * p).addcmul_(q * q, sums.square)
    return TokenStatistics(
        logp,
        one_minus_p,
        entropy,
        collision,
        gap <= 0,
        logp + gap.clamp(min=0),
        top_entropy,
        sequence,
    )


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into out. bf16 factors give an fp32 `out` the matrix unit's accumulator as it is (CUDA only), without rounding to bf16."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(a @ b)  # bf16 logits on a CPU, which multiplies in fp32
