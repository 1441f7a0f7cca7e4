"""What the tests of the theory share: objectives at given p or logits, points of the simplex, and
the flow of softmax logits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.reference import Reference
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics

F64 = torch.float64
NLL, NEG_P = {"name": "nll"}, {"name": "neg_p"}


def alpha(value: float) -> dict[str, Any]:
    return {"name": "alpha", "alpha": value}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens_of(p: Tensor) -> TokenStatistics:
    """For objectives of p alone."""
    nothing = torch.full_like(p, math.nan)
    return TokenStatistics(p.log(), 1 - p, nothing, nothing, nothing, nothing)


def tokens_from(logits: Tensor, targets: Tensor) -> TokenStatistics:
    """All that an objective may read, differentiable in the logits [n, V]."""
    logp = logits.log_softmax(-1)
    p, of_target = logp.exp(), logp.gather(1, targets[:, None]).squeeze(1)
    top = (logp.topk(min(20, logits.shape[1])).values).log_softmax(-1)
    return TokenStatistics(
        logp=of_target,
        one_minus_p=-torch.expm1(of_target),
        entropy=-(p * logp).sum(1),
        collision=p.square().sum(1),
        top1=of_target >= logp.max(1).values,
        top_logp=logp.max(1).values,
        top_entropy=-(top.exp() * top).sum(1),
        sequence=torch.arange(len(targets)),
        reference=reference_of(logits.detach().roll(1, 1), targets),
    )


def reference_of(logits: Tensor, targets: Tensor) -> Reference:
    """The statistics of the same tokens under a base model with these logits [n, V]."""
    logp = logits.log_softmax(-1)
    p, of_target = logp.exp(), logp.gather(1, targets[:, None])
    top = (logp.topk(min(20, logits.shape[1])).values).log_softmax(-1)
    return Reference(
        logp=of_target.squeeze(1),
        entropy=-(p * logp).sum(1),
        collision=p.square().sum(1),
        top_logp=logp.max(1).values,
        top_entropy=-(top.exp() * top).sum(1),
        mass=(p * (logp <= of_target)).sum(1),
    )


def state_for(config: dict[str, Any], count: int) -> ObjectiveState:
    values = {
        "alpha": 0.0,
        "lower": 0.0,
        "upper": 1.0,
        "floor": 0.0,
        "mean_p": 0.6,
        "sequence_nll": 0.8,
        "mass": 1.0,
        "exempt": 0.0,
    } | config
    return ObjectiveState(
        **{name: torch.full((count,), values[name], dtype=F64) for name in ObjectiveState._fields}
    )


def evaluate(config: dict[str, Any], tokens: TokenStatistics) -> tuple[Tensor, Tensor]:
    """(loss, weight) of a registered objective."""
    return build_objective(ObjectiveConfig(**config))(tokens, state_for(config, len(tokens.logp)))


def weight_of(config: dict[str, Any], p: Tensor) -> Tensor:
    return evaluate(config, tokens_of(p))[1]


def simplices(count: int, size: int, seed: int) -> Tensor:
    """[about count, size]: Dirichlet draws from even to nearly one-hot, and all corners and the
    points half-way between two."""
    concentrations = torch.logspace(-2, 1.5, count, dtype=F64)[:, None].expand(count, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = torch.distributions.Dirichlet(concentrations).sample()
    corners = torch.eye(size, dtype=F64)
    halves = (corners[:, None] + corners[None]).reshape(-1, size) / 2
    return torch.cat([drawn, corners, halves])


def ascend(
    value: Callable[[Tensor], Tensor], size: int, inside: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, Tensor]:
    """(maximum found, its place) of a function of simplices by gradient ascent from 128 random
    starts, over those `inside`."""
    z = (3 * torch.randn(128, size, generator=draws(4), dtype=F64)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    best, place = -math.inf, torch.zeros(size, dtype=F64)
    for _ in range(300):
        q = z.softmax(-1)
        found = value(q)
        optimizer.zero_grad()
        (-found.sum()).backward()
        optimizer.step()
        allowed = torch.ones(128, dtype=torch.bool) if inside is None else inside(q.detach())
        found = torch.where(allowed, found.detach(), -math.inf)
        if found.max() > best:
            best, place = float(found.max()), q[found.argmax()].detach()
    return best, place


def lemma_5_2(q: Tensor) -> Tensor:
    """F, i = 0 and j = 1."""
    return q[..., 0] * q[..., 1] * excess(q)


def excess(q: Tensor) -> Tensor:
    return -q[..., 0] - q[..., 1] + q.square().sum(-1)


class Contexts(NamedTuple):
    """n contexts; r and T are one-hot at `true` and `label`, as in Assumption 5."""

    q: Tensor  # [n, V]
    true: Tensor  # y*, [n]
    label: Tensor  # y~, [n]

    def of(self, tokens: Tensor) -> Tensor:
        return self.q.gather(1, tokens[:, None]).squeeze(1)

    @property
    def mass(self) -> Tensor:
        return self.of(self.true) + self.of(self.label)

    @property
    def alignment(self) -> Tensor:
        """<e_y* - q, e_y~ - q>: 1 - 2 q_y* + |q|^2 for a right label, else -q_y* - q_y~ + |q|^2."""
        return (self.true == self.label).to(F64) - self.mass + self.q.square().sum(1)


def reduction(config: dict[str, Any], contexts: Contexts) -> Tensor:
    """Of each context, how fast the flow of an objective lowers the risk: <v_*, v_i> = q_y* s(q_y~)
    <e_y* - q, e_y~ - q> (Eq. 7, 15)."""
    return (
        contexts.of(contexts.true)
        * weight_of(config, contexts.of(contexts.label))
        * contexts.alignment
    )


def uniform(size: int, noisy: bool) -> Contexts:
    zeros = torch.zeros(1, dtype=torch.int64)
    return Contexts(torch.full((1, size), 1 / size, dtype=F64), zeros, zeros + noisy)


def strong(count: int, size: int, seed: int, noisy: bool, outside: float = 0.25) -> Contexts:
    """Assumptions 3 and 4: q_y* + q_y~ in [.55, .95] but for a share `outside` of the contexts,
    where it is below .5; else at random."""
    generator = draws(seed)

    def between(low: Any, high: Any) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=F64)

    mass = torch.where(
        torch.arange(count) >= outside * count, between(0.55, 0.95), between(0.05, 0.5)
    )
    share = between(0.05, 0.95)
    rest = torch.rand(count, size - 2 + (not noisy), generator=generator, dtype=F64) ** 6 + 1e-9
    pair = torch.stack([mass * share, mass * (1 - share)], dim=1) if noisy else mass[:, None] / 2
    q = torch.cat([pair, rest / rest.sum(1, keepdim=True) * (1 - pair.sum(1, keepdim=True))], dim=1)
    true = torch.zeros(count, dtype=torch.int64)
    return Contexts(q, true, true + noisy)


def finite_difference(
    config: dict[str, Any], contexts: Contexts, features: Tensor, eta: float = 1e-5
) -> Tensor:
    """(R(theta + eta dL) - R(theta - eta dL)) / 2 eta of each context by itself: logits log q +
    features^T theta at theta = 0, where dL is by autograd through an objective's loss."""
    theta = torch.zeros(len(contexts.q), features.shape[1], dtype=F64, requires_grad=True)

    def logits(at: Tensor) -> Tensor:
        return contexts.q.log() + torch.einsum("nd,ndv->nv", at, features)

    loss, _ = evaluate(config, tokens_from(logits(theta), contexts.label))
    gradient = torch.autograd.grad(loss.sum(), theta)[0]
    there, back = (
        -logits(at).softmax(-1).gather(1, contexts.true[:, None]).squeeze(1)
        for at in (eta * gradient, -eta * gradient)
    )
    return (there - back) / (2 * eta)


def preconditioned(count: int, size: int, width: int, seed: int) -> Tensor:
    """[n, width, V] with orthonormal columns: the features of Assumption 5, whose singular values
    are all 1."""
    return torch.linalg.qr(torch.randn(count, width, size, generator=draws(seed), dtype=F64)).Q
