"""Weighted likelihoods, -weight log p with the weight under stop-gradient: W = weight (1-p).

The loss is not an antiderivative of the gradient.
"""

import math

import torch
from torch import Tensor

from adaptsft.objectives.base import Result, register


def weighted(logp: Tensor, weight: Tensor) -> Result:
    return -weight * logp, weight


@register("dft")
def dft(logp: Tensor) -> Result:
    """loss: -weight log p
    weight: p
    W: p (1-p)

    The gradient of -p. Without the stop-gradient the weight would be p (1 + log p), negative below
    p = 1/e. Source: arXiv:2508.05629.
    """
    return weighted(logp, logp.exp())


@register("concentration", bounds={"power": (0.0, 10.0)})
def concentration(
    logp: Tensor, collision: Tensor, alpha: Tensor, floor: Tensor, *, power: float = 0.5
) -> Result:
    """loss: -weight log p
    weight: floor + (1-floor) p^(alpha c^power), c = sum_i p_i^2
    W: weight (1-p)

    NLL where the model is undecided (c near 0), towards f_alpha where it is concentrated on few
    tokens. At power = .5 the exponent is alpha times the Euclidean norm of the distribution; at
    power = 1, alpha = 1 and floor = 0 this is DEFT, and at power = 0 f_alpha.
    """
    exponent = alpha * collision**power
    weight = floor + (1 - floor) * torch.exp(exponent * logp)
    return weighted(logp, weight)


@register("soft_threshold", bounds={"width": (1e-3, 10.0)})
def soft_threshold(logp: Tensor, lower: Tensor, *, width: float = 0.5) -> Result:
    """loss: -weight log p
    weight: sigmoid((log p - log lower) / width)
    W: weight (1-p)

    A threshold without an edge; at lower = 0 it is NLL.
    """
    return weighted(logp, torch.sigmoid((logp - lower.log()) / width))


@register("deft")
def deft(logp: Tensor, collision: Tensor) -> Result:
    """loss: -weight log p
    weight: p^c, c = sum_i p_i^2
    W: p^c (1-p)

    Source: arXiv:2602.11424; it reports (1 - p^c)/c, whose gradient (c under stop-gradient) is the
    same.
    """
    return weighted(logp, torch.exp(collision * logp))


@register("eaft", bounds={"exponent": (0.0, 10.0)})
def eaft(logp: Tensor, top_entropy: Tensor, *, exponent: float = 1.0) -> Result:
    """loss: -weight log p
    weight: (H20 / 3)^exponent
    W: weight (1-p)

    H20 is the entropy (nats) of the 20 likeliest tokens, renormalised, and 3 stands for log 20 as
    in the released code: tokens of which the model is sure learn little, right or wrong.
    Source: arXiv:2601.02151.
    """
    return weighted(logp, (top_entropy / 3.0) ** exponent)


@register("cayley", bounds={"batch": (0.0, 1.0)})
def cayley(logp: Tensor, mean_p: Tensor, *, batch: float = 0.0) -> Result:
    """loss: -weight log p
    weight: p^a, a = a0 + (1-a0) p/(2-p), a0 = mean(p)/2
    W: p^a (1-p)

    mean(p) is that of the previous step over all ranks, per source; batch=1 takes that of the
    micro-batch, as published, which depends on how the batch is split. Source: arXiv:2602.11424.
    """
    p = logp.exp()
    a0 = 0.5 * (p.mean() if batch else mean_p)
    a = (a0 + (1 - a0) * p / (2 - p)).clamp(0.001, 1.0)
    return weighted(logp, torch.exp(a * logp))


@register("talr", bounds={"floor": (0.0, 1.0), "batch": (0.0, 1.0)})
def talr(
    logp: Tensor, sequence: Tensor, sequence_nll: Tensor, *, floor: float = 0.01, batch: float = 0.0
) -> Result:
    """loss: -weight log p
    weight: max(p^(1/tau), floor), tau = median over sequences of their mean NLL
    W: weight (1-p)

    tau is that of the previous step over all ranks, per source; batch=1 takes the median of the
    micro-batch. The gradient of alpha = 1/tau, with a floor. The authors advise a learning rate of
    1e-6. Source: arXiv:2509.20758.
    """
    tau = _median_sequence_nll(logp, sequence) if batch else sequence_nll
    return weighted(logp, torch.exp(logp / tau.clamp(min=1e-6)).clamp(min=floor))


def _median_sequence_nll(logp: Tensor, sequence: Tensor | None) -> Tensor:
    means, counts = of_sequences(sequence, -logp, "talr with batch=1")
    # of an even number, the lower one, like torch.median; the means of none are NaN, and sort last
    middle = ((counts > 0).sum(0, keepdim=True) - 1) // 2
    return means.sort().values.gather(0, middle)


def of_sequences(sequence: Tensor | None, values: Tensor, reader: str) -> tuple[Tensor, Tensor]:
    """(mean of `values` [n] over each sequence's tokens, their number), both [n]: entry i is of
    sequence i; beyond the last one, NaN and 0.

    Raises ValueError, naming the reader, where the caller gave no sequences.
    """
    if sequence is None:
        raise ValueError(
            f"{reader} needs each token's sequence: pass `sequence` to linear_objective"
        )
    # as many means as tokens, so that the number of sequences stays on the device. index_add only
    # counts: on a GPU its order of summation, and so the rounding of a sum, changes from call to
    # call
    order = sequence.argsort(stable=True)
    counts = torch.zeros_like(sequence).index_add(0, sequence, torch.ones_like(sequence))
    return torch.segment_reduce(values[order], "mean", lengths=counts, unsafe=True), counts


@register(
    "idft",
    bounds={"beta": (1e-3, 1e3), "low": (0.0, 10.0), "high": (0.0, 10.0), "strength": (0.0, 1.0)},
)
def idft(
    logp: Tensor,
    entropy: Tensor,
    *,
    beta: float = 1.0,
    low: float = 0.1,
    high: float = 2.0,
    strength: float = 1.0,
) -> Result:
    """loss: -weight log p
    weight: p^g, g = 1 + strength (clip(exp(-(log p + H) / beta), low, high) - 1)
    W: p^g (1-p)

    log p + H compares the target with what the model would have drawn: the more surprising the
    token, the larger the exponent. Source: arXiv:2602.12222 (its optional ramp of `strength` over
    the steps is left out).
    """
    g = torch.exp(-(logp + entropy) / beta).clamp(low, high)
    return weighted(logp, torch.exp((1 + strength * (g - 1)) * logp))


@register("profit", mask=lambda logp, *, cut: logp.exp() > cut, bounds={"cut": (0.0, 1.0)})
def profit(logp: Tensor, *, cut: float = 0.1) -> Result:
    """loss: -log p if p > cut, else 0
    weight: 1 if p > cut, else 0
    W: 1-p if p > cut, else 0

    A threshold on NLL; the authors divide by all tokens (objective.normalizer=all).
    Source: arXiv:2601.09195.
    """
    return weighted(logp, (logp.exp() > cut).to(logp.dtype))


@register("chord_phi")
def chord_phi(logp: Tensor, one_minus_p: Tensor) -> Result:
    """loss: -weight log p
    weight: p (1-p)
    W: p (1-p)^2

    The largest weight is at p = 1/2: neither what is known nor what is far off. Source:
    arXiv:2508.11408.
    """
    return weighted(logp, logp.exp() * one_minus_p)


@register("info_sft", bounds={"pivot": (0.01, 1 - 1e-6)})
def info_sft(logp: Tensor, one_minus_p: Tensor, *, pivot: float = 0.93) -> Result:
    """loss: -weight log p
    weight: p max(0, logit(pivot) - logit(p))
    W: weight (1-p); weight <= 1.31, at p = .57

    Nothing is learned from tokens above the pivot. Source: arXiv:2605.14967.
    """
    logit = logp - one_minus_p.log()
    below = (math.log(pivot) - math.log1p(-pivot) - logit).clamp(min=0.0)
    return weighted(logp, logp.exp() * below)
