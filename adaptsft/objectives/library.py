"""The objectives: one function each. What a function gets and returns: adaptsft.objectives.base.

Weights are computed from log p and 1 - p so that they keep their relative accuracy at both ends;
tests/objectives/test_library.py checks every objective here against 50-digit arithmetic.
"""

import math

import torch
from torch import Tensor

from adaptsft.objectives.base import Result, register
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics

# Functions of p alone. W is the size of the gradient at the target's logit.


@register("nll")
def nll(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -log p
    weight: 1
    W: 1 - p

    Maximum likelihood: the least likely tokens have the largest gradients.
    """
    return -tokens.logp, torch.ones_like(tokens.logp)


@register("alpha", uses=("alpha",))
def alpha(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: (1 - p^alpha) / alpha; -log p at alpha = 0
    weight: p^alpha
    W: p^alpha (1-p), peak at p = alpha/(1+alpha)

    From NLL (0) over 1 - p (1) towards the already likely tokens. Source: arXiv:2510.00526, Eq. 3;
    the Tsallis q-logarithm.
    """
    a, logp = state.alpha, tokens.logp
    # (1 - p^a)/a = -log p (1 + O(a log p)); dividing by a smaller a would amplify rounding
    small = a.abs() < 1e-6
    loss = torch.where(small, -logp, -torch.expm1(a * logp) / torch.where(small, 1.0, a))
    return loss, torch.exp(a * logp)


@register("neg_p")
def neg_p(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -p
    weight: p
    W: p (1-p), peak .25 at p = .5

    The gradient of alpha = 1 and of DFT. Linear in p, hence both convex and concave.
    Source: arXiv:2510.00526.
    """
    p = tokens.logp.exp()
    return -p, p


@register("neg_p_k", bounds={"k": (1e-3, 1e3)})
def neg_p_k(tokens: TokenStatistics, state: ObjectiveState, *, k: float = 10.0) -> Result:
    """loss: -p^k
    weight: k p^k
    W: k p^k (1-p), peak .35 at p = .91 (k = 10)

    k times the gradient of alpha = k. The "-p^10" runs of arXiv:2510.00526 trained (1-p^10)/10,
    that is alpha = 10.
    """
    power = torch.exp(k * tokens.logp)
    return -power, k * power


@register("log1mp", bounds={"clamp": (1e-12, 0.5)})
def log1mp(tokens: TokenStatistics, state: ObjectiveState, *, clamp: float = 1e-6) -> Result:
    """loss: log(1-p), continued by its tangent where 1-p < clamp
    weight: p / max(1-p, clamp)
    W: p, for 1-p >= clamp

    The more likely the token, the larger its gradient; the weight would be unbounded without the
    clamp. arXiv:2510.00526 writes -log(1-p), which increases with p and would unlearn.
    """
    p, bounded = tokens.logp.exp(), tokens.one_minus_p.clamp(min=clamp)
    tangent = (tokens.one_minus_p / clamp).clamp(max=1.0) - 1.0
    return torch.where(p < 0.5, torch.log1p(-p), bounded.log() + tangent), p / bounded


@register("focal", bounds={"gamma": (0.0, 100.0)})
def focal(tokens: TokenStatistics, state: ObjectiveState, *, gamma: float = 2.0) -> Result:
    """loss: -(1-p)^gamma log p
    weight: (1-p)^gamma (1 + gamma p r), r = -log p / (1-p)
    W: weight (1-p); weight <= 1.225, at p = .104 (gamma = 2)

    Fades out what is already likely. Source: Lin et al., arXiv:1708.02002.
    """
    m = tokens.one_minus_p
    ratio = torch.where(m > 0, -tokens.logp / m, 1.0)
    power = m**gamma
    return -power * tokens.logp, power * (1 + gamma * tokens.logp.exp() * ratio)


@register("huber", bounds={"delta": (1e-6, 1.0)})
def huber(tokens: TokenStatistics, state: ObjectiveState, *, delta: float = 0.5) -> Result:
    """loss: m^2/2 if m <= delta, else delta (m - delta/2), with m = 1-p
    weight: p min(1-p, delta)
    W: weight (1-p); weight <= .25, W <= 4/27

    Huber's loss on the distance 1-p: flat for very unlikely and for very likely tokens. The default
    delta is ours.
    """
    m, bounded = tokens.one_minus_p, tokens.one_minus_p.clamp(max=delta)
    return bounded * (m - bounded / 2), tokens.logp.exp() * bounded


@register("sce", bounds={"a": (0.0, 1e3), "b": (0.0, 1e3), "A": (-1e3, 0.0)})
def sce(
    tokens: TokenStatistics,
    state: ObjectiveState,
    *,
    a: float = 0.1,
    b: float = 1.0,
    A: float = -4.0,
) -> Result:
    """loss: -a log p - b A (1-p)
    weight: a - b A p
    W: (a - b A p) (1-p)

    Symmetric cross-entropy; A stands for log 0. Source: Wang et al., arXiv:1908.06112 (their
    CIFAR-10 values).
    """
    return -a * tokens.logp - b * A * tokens.one_minus_p, a - b * A * tokens.logp.exp()


@register("poly1", bounds={"epsilon": (-1.0, 1e3)})
def poly1(tokens: TokenStatistics, state: ObjectiveState, *, epsilon: float = 1.0) -> Result:
    """loss: -log p + epsilon (1-p)
    weight: 1 + epsilon p
    W: (1 + epsilon p) (1-p)

    NLL with its first Taylor coefficient changed. Source: Leng et al., arXiv:2204.12511.
    """
    return -tokens.logp + epsilon * tokens.one_minus_p, 1 + epsilon * tokens.logp.exp()


@register(
    "gce",
    mask=lambda tokens, state, *, q, k: tokens.logp.exp() > k,
    bounds={"q": (1e-3, 1.0), "k": (0.0, 1.0)},
)
def gce(
    tokens: TokenStatistics, state: ObjectiveState, *, q: float = 0.7, k: float = 0.5
) -> Result:
    """loss: (1 - max(p, k)^q) / q
    weight: p^q if p > k, else 0
    W: p^q (1-p) if p > k, else 0

    Truncated generalised cross-entropy; k = 0 is the generalised one (alpha = q).
    Source: Zhang & Sabuncu, arXiv:1805.07836.
    """
    kept = tokens.logp.exp() > k
    floor = -math.expm1(q * math.log(k)) / q if k > 0 else 1 / q
    loss = torch.where(kept, -torch.expm1(q * tokens.logp) / q, floor)
    return loss, torch.where(kept, torch.exp(q * tokens.logp), 0.0)


# Weighted likelihoods, -weight log p with the weight under stop-gradient: W = weight (1-p). The
# loss is not an antiderivative of the gradient.


def _weighted(tokens: TokenStatistics, weight: Tensor) -> Result:
    return -weight * tokens.logp, weight


@register("dft")
def dft(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -weight log p
    weight: p
    W: p (1-p)

    The gradient of -p. Without the stop-gradient the weight would be p (1 + log p), negative below
    p = 1/e. Source: arXiv:2508.05629.
    """
    return _weighted(tokens, tokens.logp.exp())


@register("concentration", uses=("alpha",))
def concentration(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -weight log p
    weight: p^(alpha c), c = sum_i p_i^2
    W: p^(alpha c) (1-p)

    NLL where the model is undecided (c near 0), towards f_alpha where it is concentrated on few
    tokens. DEFT is alpha = 1.
    """
    return _weighted(tokens, torch.exp(state.alpha * tokens.collision * tokens.logp))


@register("soft_threshold", uses=("lower",), bounds={"width": (1e-3, 10.0)})
def soft_threshold(tokens: TokenStatistics, state: ObjectiveState, *, width: float = 0.5) -> Result:
    """loss: -weight log p
    weight: sigmoid((log p - log lower) / width)
    W: weight (1-p)

    A threshold without an edge; at lower = 0 it is NLL.
    """
    return _weighted(tokens, torch.sigmoid((tokens.logp - state.lower.log()) / width))


@register("deft")
def deft(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -weight log p
    weight: p^c, c = sum_i p_i^2
    W: p^c (1-p)

    Source: arXiv:2602.11424; it reports (1 - p^c)/c, whose gradient (c under stop-gradient) is the
    same.
    """
    return _weighted(tokens, torch.exp(tokens.collision * tokens.logp))


@register("eaft", needs=("top_entropy",), bounds={"exponent": (0.0, 10.0)})
def eaft(tokens: TokenStatistics, state: ObjectiveState, *, exponent: float = 1.0) -> Result:
    """loss: -weight log p
    weight: (H20 / 3)^exponent
    W: weight (1-p)

    H20 is the entropy (nats) of the 20 likeliest tokens, renormalised, and 3 stands for log 20 as
    in the released code: tokens of which the model is sure learn little, right or wrong.
    Source: arXiv:2601.02151.
    """
    assert tokens.top_entropy is not None, "declared in needs"
    return _weighted(tokens, (tokens.top_entropy / 3.0) ** exponent)


@register("cayley", uses=("mean_p",), bounds={"batch": (0.0, 1.0)})
def cayley(tokens: TokenStatistics, state: ObjectiveState, *, batch: float = 0.0) -> Result:
    """loss: -weight log p
    weight: p^a, a = a0 + (1-a0) p/(2-p), a0 = mean(p)/2
    W: p^a (1-p)

    mean(p) is that of the previous step over all ranks, per source; batch=1 takes that of the
    micro-batch, as published, which depends on how the batch is split. Source: arXiv:2602.11424.
    """
    p = tokens.logp.exp()
    a0 = 0.5 * (p.mean() if batch else state.mean_p)
    a = (a0 + (1 - a0) * p / (2 - p)).clamp(0.001, 1.0)
    return _weighted(tokens, torch.exp(a * tokens.logp))


@register("talr", uses=("sequence_nll",), bounds={"floor": (0.0, 1.0), "batch": (0.0, 1.0)})
def talr(
    tokens: TokenStatistics, state: ObjectiveState, *, floor: float = 0.01, batch: float = 0.0
) -> Result:
    """loss: -weight log p
    weight: max(p^(1/tau), floor), tau = median over sequences of their mean NLL
    W: weight (1-p)

    tau is that of the previous step over all ranks, per source; batch=1 takes the median of the
    micro-batch. The gradient of alpha = 1/tau, with a floor. The authors advise a learning rate of
    1e-6. Source: arXiv:2509.20758.
    """
    tau = _median_sequence_nll(tokens) if batch else state.sequence_nll
    return _weighted(tokens, torch.exp(tokens.logp / tau.clamp(min=1e-6)).clamp(min=floor))


def _median_sequence_nll(tokens: TokenStatistics) -> Tensor:
    if tokens.sequence is None:
        raise ValueError(
            "talr with batch=1 needs each token's sequence: pass `sequence` to linear_objective"
        )
    # as many means as tokens, so that the number of sequences stays on the device; the unused ones
    # are NaN, which sorts last. index_add only counts: on a GPU its order of summation, and so the
    # rounding of a sum, changes from call to call
    sequence = tokens.sequence
    order = sequence.argsort(stable=True)
    counts = torch.zeros_like(sequence).index_add(0, sequence, torch.ones_like(sequence))
    means = torch.segment_reduce(-tokens.logp[order], "mean", lengths=counts, unsafe=True)
    # of an even number, the lower one, like torch.median
    middle = ((counts > 0).sum(0, keepdim=True) - 1) // 2
    return means.sort().values.gather(0, middle)


@register(
    "idft",
    bounds={"beta": (1e-3, 1e3), "low": (0.0, 10.0), "high": (0.0, 10.0), "strength": (0.0, 1.0)},
)
def idft(
    tokens: TokenStatistics,
    state: ObjectiveState,
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
    g = torch.exp(-(tokens.logp + tokens.entropy) / beta).clamp(low, high)
    return _weighted(tokens, torch.exp((1 + strength * (g - 1)) * tokens.logp))


@register(
    "profit", mask=lambda tokens, state, *, cut: tokens.logp.exp() > cut, bounds={"cut": (0.0, 1.0)}
)
def profit(tokens: TokenStatistics, state: ObjectiveState, *, cut: float = 0.1) -> Result:
    """loss: -log p if p > cut, else 0
    weight: 1 if p > cut, else 0
    W: 1-p if p > cut, else 0

    A threshold on NLL; the authors divide by all tokens (objective.normalizer=all).
    Source: arXiv:2601.09195.
    """
    return _weighted(tokens, (tokens.logp.exp() > cut).to(tokens.logp.dtype))


@register("chord_phi")
def chord_phi(tokens: TokenStatistics, state: ObjectiveState) -> Result:
    """loss: -weight log p
    weight: p (1-p)
    W: p (1-p)^2

    The largest weight is at p = 1/2: neither what is known nor what is far off. Source:
    arXiv:2508.11408.
    """
    return _weighted(tokens, tokens.logp.exp() * tokens.one_minus_p)


@register("info_sft", bounds={"pivot": (0.01, 1 - 1e-6)})
def info_sft(tokens: TokenStatistics, state: ObjectiveState, *, pivot: float = 0.93) -> Result:
    """loss: -weight log p
    weight: p max(0, logit(pivot) - logit(p))
    W: weight (1-p); weight <= 1.31, at p = .57

    Nothing is learned from tokens above the pivot. Source: arXiv:2605.14967.
    """
    logit = tokens.logp - tokens.one_minus_p.log()
    below = (math.log(pivot) - math.log1p(-pivot) - logit).clamp(min=0.0)
    return _weighted(tokens, tokens.logp.exp() * below)
