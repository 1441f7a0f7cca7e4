"""Random heads, and their loss with logits held whole, differentiated by autograd."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.state import ObjectiveState, initial_state
from adaptsft_kernels import TokenStatistics

N, D, V = 23, 16, 101


def nll(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
    return -tokens.logp, torch.ones_like(tokens.logp)


def random_head(
    n: int = N, d: int = D, v: int = V, dtype: torch.dtype = torch.float32, targets: float = 0.7
) -> tuple[Tensor, ...]:
    """hidden, weight, bias (leaves) and targets of every likelihood; about `targets` of the rows
    have one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(v, d, dtype=torch.float64, generator=generator)
    y = torch.randint(0, v, (n,), generator=generator)
    pull = torch.rand(n, 1, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, d, dtype=torch.float64, generator=generator)
    hidden = pull * weight[y] + 0.5 * noise
    y[torch.rand(n, generator=generator) >= targets] = -100
    bias = torch.randn(v, dtype=torch.float64, generator=generator)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), y


def state_of(sources: int = 1, /, **values: float) -> ObjectiveState:
    state = initial_state(ObjectiveConfig(alpha=0.0), sources, torch.device("cpu"))
    return state._replace(**{name: torch.full((sources,), x) for name, x in values.items()})


def logits_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    z = logit_scale * F.linear(hidden, weight, bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def dense(
    hidden: Tensor, weight: Tensor, targets: Tensor, f: Callable[[Tensor], Tensor], **head: Any
) -> Tensor:
    """The sum of f(log p) over the target tokens."""
    z, learned = logits_of(hidden, weight, **head), targets != -100
    logp = z.log_softmax(1)[learned].gather(1, targets[learned, None]).squeeze(1)
    return f(logp).sum()


def relative(a: Tensor, b: Tensor) -> float:
    """The relative error of a to b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
