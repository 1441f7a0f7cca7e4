"""The objectives: one function each. What a function gets and returns: adaptsft.objectives.base."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from adaptsft.objectives.base import Objective, Result, register
from adaptsft_kernels import TokenStatistics

# Functions of p alone. W is given with its peak, where that is instructive.


@register("nll")
def nll(rows: TokenStatistics, control: Any) -> Result:
    """loss: -log p
    s: 1
    W: 1 - p

    Maximum likelihood: the least likely tokens have the largest gradients.
    """
    return -rows.logp, torch.ones_like(rows.logp)


@register("alpha", uses=("alpha",))
def alpha(rows: TokenStatistics, control: Any) -> Result:
    """loss: (1 - p^alpha) / alpha; -log p at alpha = 0
    s: p^alpha
    W: p^alpha (1-p), peak at p = alpha/(1+alpha)

    From NLL (0) over 1 - p (1) towards the already likely tokens. Source: arXiv:2510.00526, Eq. 3; the Tsallis q-logarithm.
    """
    a = control.alpha
    small = (
        a.abs() < 1e-6
    )  # (1 - p^a)/a = -log p (1 + O(a log p)); dividing by such an a would amplify rounding
    loss = torch.where(small, -rows.logp, -torch.expm1(a * rows.logp) / torch.where(small, 1.0, a))
    return loss, torch.exp(a * rows.logp)


@register("neg_p")
def neg_p(rows: TokenStatistics, control: Any) -> Result:
    """loss: -p
    s: p
    W: p (1-p), peak .25 at p = .5

    The gradient of alpha = 1 and of DFT. Linear in p, hence both convex and concave. Source: arXiv:2510.00526.
    """
    p = rows.logp.exp()
    return -p, p


@register("neg_p_k", bounds={"k": (1e-3, 1e3)})
def neg_p_k(rows: TokenStatistics, control: Any, *, k: float = 10.0) -> Result:
    """loss: -p^k
    s: k p^k
    W: k p^k (1-p), peak .35 at p = .91 (k = 10)

    k times the gradient of alpha = k. The "-p^10" runs of arXiv:2510.00526 trained (1-p^10)/10, that is alpha = 10.
    """
    power = torch.exp(k * rows.logp)
    return -power, k * power


@register("log1mp", bounds={"clamp": (1e-12, 0.5)})
def log1mp(rows: TokenStatistics, control: Any, *, clamp: float = 1e-6) -> Result:
    """loss: log(1-p), continued by its tangent where 1-p < clamp
    s: p / max(1-p, clamp)
    W: p, for 1-p >= clamp

    The more likely the token, the larger its gradient; s would be unbounded without the clamp. arXiv:2510.00526 writes -log(1-p),
    which increases with p and would unlearn.
    """
    p, bounded = rows.logp.exp(), rows.one_minus_p.clamp(min=clamp)
    tangent = (rows.one_minus_p / clamp).clamp(max=1.0) - 1.0
    return torch.where(p < 0.5, torch.log1p(-p), bounded.log() + tangent), p / bounded


@register("focal", bounds={"gamma": (0.0, 100.0)})
def focal(rows: TokenStatistics, control: Any, *, gamma: float = 2.0) -> Result:
    """loss: -(1-p)^gamma log p
    s: (1-p)^gamma (1 + gamma p r), r = -log p / (1-p)
    W: s (1-p); s <= 1.225, at p = .104 (gamma = 2)

    Fades out what is already likely. Source: Lin et al., arXiv:1708.02002.
    """
    m = rows.one_minus_p
    ratio = torch.where(m > 0, -rows.logp / m, 1.0)
    power = m**gamma
    return -power * rows.logp, power * (1 + gamma * rows.logp.exp() * ratio)


@register("huber", bounds={"delta": (1e-6, 1.0)})
def huber(rows: TokenStatistics, control: Any, *, delta: float = 0.5) -> Result:
    """loss: m^2/2 if m <= delta, else delta (m - delta/2), with m = 1-p
    s: p min(1-p, delta)
    W: s (1-p); s <= .25, W <= 4/27

    Huber's loss on the distance 1-p: flat for very unlikely and for very likely tokens. The default delta is ours.
    """
    m, bounded = rows.one_minus_p, rows.one_minus_p.clamp(max=delta)
    return bounded * (m - bounded / 2), rows.logp.exp() * bounded


@register("sce", bounds={"a": (0.0, 1e3), "b": (0.0, 1e3), "A": (-1e3, 0.0)})
def sce(
    rows: TokenStatistics, control: Any, *, a: float = 0.1, b: float = 1.0, A: float = -4.0
) -> Result:
    """loss: -a log p - b A (1-p)
    s: a - b A p
    W: (a - b A p) (1-p)

    Symmetric cross-entropy; A stands for log 0. Source: Wang et al., arXiv:1908.06112 (their CIFAR-10 values).
    """
    return -a * rows.logp - b * A * rows.one_minus_p, a - b * A * rows.logp.exp()


@register("poly1", bounds={"epsilon": (-1.0, 1e3)})
def poly1(rows: TokenStatistics, control: Any, *, epsilon: float = 1.0) -> Result:
    """loss: -log p + epsilon (1-p)
    s: 1 + epsilon p
    W: (1 + epsilon p) (1-p)

    NLL with its first Taylor coefficient changed. Source: Leng et al., arXiv:2204.12511.
    """
    return -rows.logp + epsilon * rows.one_minus_p, 1 + epsilon * rows.logp.exp()


@register(
    "gce",
    mask=lambda rows, control, *, q, k: rows.logp.exp() > k,
    bounds={"q": (1e-3, 1.0), "k": (0.0, 1.0)},
)
def gce(rows: TokenStatistics, control: Any, *, q: float = 0.7, k: float = 0.5) -> Result:
    """loss: (1 - max(p, k)^q) / q
    s: p^q if p > k, else 0
    W: p^q (1-p) if p > k, else 0

    Truncated generalised cross-entropy; k = 0 is the generalised one (alpha = q). Source: Zhang & Sabuncu, arXiv:1805.07836.
    """
    kept = rows.logp.exp() > k
    floor = -math.expm1(q * math.log(k)) / q if k > 0 else 1 / q
    return torch.where(kept, -torch.expm1(q * rows.logp) / q, floor), torch.where(
        kept, torch.exp(q * rows.logp), 0.0
    )


# Weighted likelihoods, -w log p with w under stop-gradient: s = w, W = w (1-p). The loss is not an antiderivative of the gradient.


def _weighted(rows: TokenStatistics, w: Tensor) -> Result:
    return -w * rows.logp, w


@register("dft")
def dft(rows: TokenStatistics, control: Any) -> Result:
    """loss: -w log p, w = p
    s: p
    W: p (1-p)

    The gradient of -p. Without the stop-gradient s would be p (1 + log p), negative below p = 1/e. Source: arXiv:2508.05629.
    """
    return _weighted(rows, rows.logp.exp())


@register("concentration", uses=("alpha",))
def concentration(rows: TokenStatistics, control: Any) -> Result:
    """loss: -w log p, w = p^(alpha c), c = sum_i p_i^2
    s: p^(alpha c)
    W: p^(alpha c) (1-p)

    NLL where the model is undecided (c near 0), towards f_alpha where it is concentrated on few tokens. DEFT is alpha = 1.
    """
    return _weighted(rows, torch.exp(control.alpha * rows.collision * rows.logp))


@register("soft_threshold", uses=("lower",), bounds={"width": (1e-3, 10.0)})
def soft_threshold(rows: TokenStatistics, control: Any, *, width: float = 0.5) -> Result:
    """loss: -w log p, w = sigmoid((log p - log lower) / width)
    s: w
    W: w (1-p)

    A threshold without an edge; at lower = 0 it is NLL. controller.name=quantile_tracker moves `lower`.
    """
    return _weighted(rows, torch.sigmoid((rows.logp - control.lower.log()) / width))


@register("deft")
def deft(rows: TokenStatistics, control: Any) -> Result:
    """loss: -w log p, w = p^c, c = sum_i p_i^2
    s: p^c
    W: p^c (1-p)

    Source: arXiv:2602.11424; it reports (1 - p^c)/c, whose gradient (c under stop-gradient) is the same.
    """
    return _weighted(rows, torch.exp(rows.collision * rows.logp))


@register("eaft", needs=("top_entropy",), bounds={"exponent": (0.0, 10.0)})
def eaft(rows: TokenStatistics, control: Any, *, exponent: float = 1.0) -> Result:
    """loss: -w log p, w = (H20 / 3)^exponent
    s: w
    W: w (1-p)

    H20 is the entropy (nats) of the 20 likeliest tokens, renormalised, and 3 stands for log 20 as in the released code: tokens of
    which the model is sure learn little, right or wrong. Source: arXiv:2601.02151.
    """
    assert rows.top_entropy is not None, "declared in needs"
    return _weighted(rows, (rows.top_entropy / 3.0) ** exponent)


@register("cayley", uses=("mean_p",), bounds={"batch": (0.0, 1.0)})
def cayley(rows: TokenStatistics, control: Any, *, batch: float = 0.0) -> Result:
    """loss: -w log p, w = p^a, a = a0 + (1-a0) p/(2-p), a0 = mean(p)/2
    s: p^a
    W: p^a (1-p)

    mean(p) is that of the previous step over all ranks, per source; batch=1 takes that of the micro-batch, as published, which
    depends on how the batch is split. Source: arXiv:2602.11424.
    """
    p = rows.logp.exp()
    a0 = 0.5 * (p.mean() if batch else control.mean_p)
    a = (a0 + (1 - a0) * p / (2 - p)).clamp(0.001, 1.0)
    return _weighted(rows, torch.exp(a * rows.logp))


@register("talr", uses=("sequence_nll",), bounds={"floor": (0.0, 1.0), "batch": (0.0, 1.0)})
def talr(rows: TokenStatistics, control: Any, *, floor: float = 0.01, batch: float = 0.0) -> Result:
    """loss: -w log p, w = max(p^(1/tau), floor), tau = median over sequences of their mean NLL
    s: w
    W: w (1-p)

    tau is that of the previous step over all ranks, per source; batch=1 takes the median of the micro-batch. The gradient of
    alpha = 1/tau, with a floor. The authors advise a learning rate of 1e-6. Source: arXiv:2509.20758.
    """
    tau = _median_sequence_nll(rows) if batch else control.sequence_nll
    return _weighted(rows, torch.exp(rows.logp / tau.clamp(min=1e-6)).clamp(min=floor))


def _median_sequence_nll(rows: TokenStatistics) -> Tensor:
    if rows.sequence is None:
        raise ValueError(
            "talr with batch=1 needs the sequence of every row: pass `sequence` to linear_objective"
        )
    # as many means as rows, so that the number of sequences stays on the device; the unused ones are NaN, which sorts last.
    # index_add only counts: on a GPU its order of summation, and so the rounding of a sum, changes from call to call
    order = rows.sequence.argsort(stable=True)
    counts = torch.zeros_like(rows.sequence).index_add(
        0, rows.sequence, torch.ones_like(rows.sequence)
    )
    means = torch.segment_reduce(-rows.logp[order], "mean", lengths=counts, unsafe=True)
    middle = (
        (counts > 0).sum(0, keepdim=True) - 1
    ) // 2  # of an even number, the lower one, like torch.median
    return means.sort().values.gather(0, middle)


@register(
    "idft",
    bounds={"beta": (1e-3, 1e3), "low": (0.0, 10.0), "high": (0.0, 10.0), "strength": (0.0, 1.0)},
)
def idft(
    rows: TokenStatistics,
    control: Any,
    *,
    beta: float = 1.0,
    low: float = 0.1,
    high: float = 2.0,
    strength: float = 1.0,
) -> Result:
    """loss: -w log p, w = p^g, g = 1 + strength (clip(exp(-(log p + H) / beta), low, high) - 1)
    s: p^g
    W: p^g (1-p)

    log p + H compares the target with what the model would have drawn: the more surprising the token, the larger the exponent.
    Source: arXiv:2602.12222 (its optional ramp of `strength` over the steps is left out).
    """
    g = torch.exp(-(rows.logp + rows.entropy) / beta).clamp(low, high)
    return _weighted(rows, torch.exp((1 + strength * (g - 1)) * rows.logp))


@register(
    "profit", mask=lambda rows, control, *, cut: rows.logp.exp() > cut, bounds={"cut": (0.0, 1.0)}
)
def profit(rows: TokenStatistics, control: Any, *, cut: float = 0.1) -> Result:
    """loss: -log p if p > cut, else 0
    s: 1 if p > cut, else 0
    W: 1-p if p > cut, else 0

    A threshold on NLL; the authors divide by all tokens (objective.normalizer=all). Source: arXiv:2601.09195.
    """
    return _weighted(rows, (rows.logp.exp() > cut).to(rows.logp.dtype))


@register("chord_phi")
def chord_phi(rows: TokenStatistics, control: Any) -> Result:
    """loss: -w log p, w = p (1-p)
    s: p (1-p)
    W: p (1-p)^2

    Neither what is known nor what is out of reach. Source: arXiv:2508.11408.
    """
    return _weighted(rows, rows.logp.exp() * rows.one_minus_p)


@register("info_sft", bounds={"pivot": (0.01, 1 - 1e-6)})
def info_sft(rows: TokenStatistics, control: Any, *, pivot: float = 0.93) -> Result:
    """loss: -w log p, w = p max(0, logit(pivot) - logit(p))
    s: w
    W: w (1-p); s <= 1.31, at p = .57

    Nothing is learned from tokens above the pivot. Source: arXiv:2605.14967.
    """
    logit = rows.logp - rows.one_minus_p.log()
    return _weighted(
        rows, rows.logp.exp() * (math.log(pivot) - math.log1p(-pivot) - logit).clamp(min=0.0)
    )


def threshold(base: Objective) -> Objective:
    """loss: base loss where lower <= p <= upper, else 0
    s: base s where lower <= p <= upper, else 0

    A hard mask, under stop-gradient, on any base objective (default nll). Quantile thresholds are this one, with the quantiles of
    the base model's p as lower and upper. Source: arXiv:2510.00526. The paper divides by the kept tokens; see objective.normalizer.
    """

    def inside(rows: TokenStatistics, control: Any) -> Tensor:
        return (rows.logp >= control.lower.log()) & (rows.logp <= control.upper.log())

    def keep(rows: TokenStatistics, control: Any) -> Tensor:
        return inside(rows, control) & base.keep(rows, control)

    def function(rows: TokenStatistics, control: Any) -> Result:
        kept, (loss, s) = inside(rows, control), base(rows, control)
        return torch.where(kept, loss, 0.0), torch.where(kept, s, 0.0)

    return dataclasses.replace(
        base, name="threshold", function=function, mask=keep, uses=base.uses | {"lower", "upper"}
    )
