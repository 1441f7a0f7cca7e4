"""Functions of p alone, with the weight -p f'(p). W is the size of the gradient at the target's
logit."""

import math

import torch
from torch import Tensor

from adaptsft.objectives.base import Result, register


@register("nll")
def nll(logp: Tensor) -> Result:
    """loss: -log p
    weight: 1
    W: 1 - p

    Maximum likelihood: the least likely tokens have the largest gradients.
    """
    return -logp, torch.ones_like(logp)


@register("alpha")
def alpha(logp: Tensor, alpha: Tensor, floor: Tensor) -> Result:
    """loss: floor (-log p) + (1-floor) (1 - p^alpha) / alpha; -log p at alpha = 0
    weight: floor + (1-floor) p^alpha
    W: p^alpha (1-p), peak at p = alpha/(1+alpha), for floor = 0

    From NLL (0) over 1 - p (1) towards the already likely tokens. The floor (objective.floor, 0)
    bounds how slowly an unlikely token is learned. Source: arXiv:2510.00526, Eq. 3; the Tsallis
    q-logarithm.
    """
    # (1 - p^a)/a = -log p (1 + O(a log p)); dividing by a smaller a would amplify rounding
    small = alpha.abs() < 1e-6
    loss = torch.where(small, -logp, -torch.expm1(alpha * logp) / torch.where(small, 1.0, alpha))
    return floor * -logp + (1 - floor) * loss, floor + (1 - floor) * torch.exp(alpha * logp)


@register("mixture")
def mixture(logp: Tensor, alpha: Tensor) -> Result:
    """loss: -(p + e log p) / (1+e), e = alpha
    weight: (p + e) / (1+e)
    W: (p + e) (1-p) / (1+e), peak at p = (1-e)/2

    -p (e = 0) and NLL (e -> infinity). e is the probability below which a token counts as news: the
    likelier ones are learned as by -p, those as by NLL. For every e > 0 the expected loss is
    strictly convex in the model's distribution: one optimum, reached from any start.
    """
    p, e = logp.exp(), alpha
    return -(p + e * logp) / (1 + e), (p + e) / (1 + e)


@register("neg_p")
def neg_p(logp: Tensor) -> Result:
    """loss: -p
    weight: p
    W: p (1-p), peak .25 at p = .5

    The gradient of alpha = 1 and of DFT. Linear in p, hence both convex and concave.
    Source: arXiv:2510.00526.
    """
    p = logp.exp()
    return -p, p


@register("neg_p_k", bounds={"k": (1e-3, 1e3)})
def neg_p_k(logp: Tensor, *, k: float = 10.0) -> Result:
    """loss: -p^k
    weight: k p^k
    W: k p^k (1-p), peak .35 at p = .91 (k = 10)

    k times the gradient of alpha = k. The "-p^10" runs of arXiv:2510.00526 trained (1-p^10)/10,
    that is alpha = 10.
    """
    power = torch.exp(k * logp)
    return -power, k * power


@register("log1mp", bounds={"clamp": (1e-12, 0.5)})
def log1mp(logp: Tensor, one_minus_p: Tensor, *, clamp: float = 1e-6) -> Result:
    """loss: log(1-p), continued by its tangent where 1-p < clamp
    weight: p / max(1-p, clamp)
    W: p, for 1-p >= clamp

    The more likely the token, the larger its gradient; the weight would be unbounded without the
    clamp. arXiv:2510.00526 writes -log(1-p), which increases with p and would unlearn.
    """
    p, bounded = logp.exp(), one_minus_p.clamp(min=clamp)
    tangent = (one_minus_p / clamp).clamp(max=1.0) - 1.0
    return torch.where(p < 0.5, torch.log1p(-p), bounded.log() + tangent), p / bounded


@register("focal", bounds={"gamma": (0.0, 100.0)})
def focal(logp: Tensor, one_minus_p: Tensor, *, gamma: float = 2.0) -> Result:
    """loss: -(1-p)^gamma log p
    weight: (1-p)^gamma (1 + gamma p r), r = -log p / (1-p)
    W: weight (1-p); weight <= 1.225, at p = .104 (gamma = 2)

    Fades out what is already likely. Source: Lin et al., arXiv:1708.02002.
    """
    m = one_minus_p
    ratio = torch.where(m > 0, -logp / m, 1.0)
    power = m**gamma
    return -power * logp, power * (1 + gamma * logp.exp() * ratio)


@register("huber", bounds={"delta": (1e-6, 1.0)})
def huber(logp: Tensor, one_minus_p: Tensor, *, delta: float = 0.5) -> Result:
    """loss: m^2/2 if m <= delta, else delta (m - delta/2), with m = 1-p
    weight: p min(1-p, delta)
    W: weight (1-p); weight <= .25, W <= 4/27

    Huber's loss on the distance 1-p: flat for very unlikely and for very likely tokens. The default
    delta is ours.
    """
    m, bounded = one_minus_p, one_minus_p.clamp(max=delta)
    return bounded * (m - bounded / 2), logp.exp() * bounded


@register("sce", bounds={"a": (0.0, 1e3), "b": (0.0, 1e3), "A": (-1e3, 0.0)})
def sce(
    logp: Tensor,
    one_minus_p: Tensor,
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
    return -a * logp - b * A * one_minus_p, a - b * A * logp.exp()


@register("poly1", bounds={"epsilon": (-1.0, 1e3)})
def poly1(logp: Tensor, one_minus_p: Tensor, *, epsilon: float = 1.0) -> Result:
    """loss: -log p + epsilon (1-p)
    weight: 1 + epsilon p
    W: (1 + epsilon p) (1-p)

    NLL with its first Taylor coefficient changed. Source: Leng et al., arXiv:2204.12511.
    """
    return -logp + epsilon * one_minus_p, 1 + epsilon * logp.exp()


@register(
    "gce",
    mask=lambda logp, *, q, k: logp.exp() > k,
    bounds={"q": (1e-3, 1.0), "k": (0.0, 1.0)},
)
def gce(logp: Tensor, *, q: float = 0.7, k: float = 0.5) -> Result:
    """loss: (1 - max(p, k)^q) / q
    weight: p^q if p > k, else 0
    W: p^q (1-p) if p > k, else 0

    Truncated generalised cross-entropy; k = 0 is the generalised one (alpha = q).
    Source: Zhang & Sabuncu, arXiv:1805.07836.
    """
    kept = logp.exp() > k
    floor = -math.expm1(q * math.log(k)) / q if k > 0 else 1 / q
    loss = torch.where(kept, -torch.expm1(q * logp) / q, floor)
    return loss, torch.where(kept, torch.exp(q * logp), 0.0)
