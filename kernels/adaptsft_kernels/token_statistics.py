"""What a row of logits comes down to: a few sums, and all that an objective may ask for from them.

The target is kept out of the running sum. With u = logsumexp(other logits) - z_y:

    log p = -softplus(u),  1 - p = sigmoid(u),  p_i = (1 - p) softmax(others)_i

No difference of nearly equal numbers occurs, so 1 - p and p_y - 1 keep their relative accuracy
where fp32 `p - 1` is zero.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ON_REQUEST = ("top_entropy", "mass")  # of TokenStatistics: only for objectives that need them
SMALLEST = torch.finfo(torch.float32).tiny  # stands for a sum that is zero in fp32
TOP_K = 20  # EAFT (arXiv:2601.02151) takes the entropy of this many likeliest tokens


class TokenStatistics(NamedTuple):
    """What an objective may read: [n], detached; fp32, or fp64 for fp64 inputs."""

    logp: Tensor  # log p of the target, nats
    one_minus_p: Tensor  # 1 - p, with full relative accuracy near p = 1
    entropy: Tensor  # H = -sum_i p_i log p_i, nats
    collision: Tensor  # sum_i p_i^2
    top1: Tensor  # bool: no other token is likelier than the target
    top_logp: Tensor  # log p of the likeliest token, nats
    # of ON_REQUEST: entropy of the TOP_K likeliest tokens, renormalised
    top_entropy: Tensor | None = None
    # int64 index of the token's sequence within this call, where the caller gave it
    sequence: Tensor | None = None
    # of ON_REQUEST: probability of all tokens at most as likely as the target, itself included
    mass: Tensor | None = None
    # a NamedTuple of [n], what the caller knew of each token beforehand, where it gave that
    reference: Any = None


class TokenOutputs(NamedTuple):
    """Returned for every target token, in order: [n], detached."""

    logp: Tensor
    one_minus_p: Tensor
    entropy: Tensor
    collision: Tensor
    top1: Tensor
    top_logp: Tensor
    loss: Tensor  # of the objective, before `scale`
    weight: Tensor  # of the objective: the gradient of the logits is weight (p_i - delta_iy)


class Sums(NamedTuple):
    """Of each row of logits, in the accumulators' dtype: [n]; i runs over all but the target."""

    target: Tensor  # z_y
    offset: Tensor  # of the exponentials; any, as long as these neither overflow nor all vanish
    highest: Tensor  # max_i z_i; row_kernels.LOWEST where there is no other token
    total: Tensor  # sum_i exp(z_i - offset), at least SMALLEST
    moment: Tensor  # sum_i exp(z_i - offset) (z_i - offset)
    square: Tensor  # sum_i exp(z_i - offset)^2


def statistics_of(
    sums: Sums, requested: dict[str, Tensor], sequence: Tensor | None, reference: Any
) -> TokenStatistics:
    # few operations: on a GPU each takes about as long on a thousand rows as to launch
    log_total, gap = sums.total.log(), sums.highest - sums.target
    u = log_total + (sums.offset - sums.target)
    one_minus_p, logp = torch.sigmoid(u), F.logsigmoid(-u)
    p, q = logp.exp(), one_minus_p / sums.total  # q: of a token whose logit is the offset
    # H = H2(p) + (1-p) H(others), with H(others) = log total - moment / total
    others = torch.addcdiv(log_total, sums.moment, sums.total, value=-1)
    entropy = torch.special.entr(one_minus_p).addcmul_(one_minus_p, others)
    entropy.addcmul_(p, logp, value=-1)
    collision = (p * p).addcmul_(q * q, sums.square)
    top1, top_logp = gap <= 0, logp + gap.clamp(min=0)
    return TokenStatistics(
        logp,
        one_minus_p,
        entropy,
        collision,
        top1,
        top_logp,
        sequence=sequence,
        reference=reference,
        **requested,
    )
