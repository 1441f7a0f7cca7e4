"""What benchmarks/loss_kernels.py compares: ways to get the loss of a head and its gradients, on data whose p look like SFT."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adaptsft_kernels import TokenStatistics, linear_objective

IGNORED = -100


class Problem(NamedTuple):
    hidden: Tensor  # [N,D], a leaf
    weight: Tensor  # [V,D], a leaf
    targets: Tensor  # int64 [N], IGNORED where nothing is learned
    target_idx: Tensor  # int64 [n_valid]: what a data loader knows
    p: Tensor  # fp32 [n_valid], of the targets
    thresholds: dict[
        float, float
    ]  # rho -> the p above which a share rho of the valid rows lies; known before the clock starts


Run = Callable[
    [Problem], Tensor | None
]  # the loss, to be differentiated; None where the gradients are computed already


def make_problem(
    n: int, d: int, v: int, mask: float, rhos: list[float], device: torch.device, dtype: torch.dtype
) -> Problem:
    """hidden = noise + a W_y, with a chosen per row so that p of the target follows Beta(.6, .2): most tokens known, some not at all.

    Random logits would be near uniform: every p tiny, every softmax flat, and kernels that drop small entries would drop all.
    The other logits have standard deviation 2. Ignored rows come in runs of 64, as prompts do.
    """
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(v, d, generator=generator, device=device).mul_(d**-0.5).to(dtype)
    targets = torch.randint(0, v, (n,), generator=generator, device=device)
    hidden = torch.empty(n, d, device=device, dtype=dtype)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = torch.linspace(1e-6, 1 - 1e-6, 20001, dtype=torch.float64)
    density = (grid ** (0.6 - 1) * (1 - grid) ** (0.2 - 1)).cumsum(0)
    wanted = (
        grid[torch.searchsorted(density / density[-1], uniform).clamp(max=20000)]
        .logit()
        .float()
        .to(device)
    )
    p = torch.empty(n, device=device)
    for rows in torch.arange(n, device=device).split(1024):
        target = weight[targets[rows]].float()
        noise = 2 * torch.randn(len(rows), d, generator=generator, device=device)
        z = noise.to(dtype) @ weight.t()
        others = z.float().scatter_(1, targets[rows, None], -torch.inf).logsumexp(1)
        norm = target.square().sum(1)
        a = (wanted[rows] + others - (noise * target).sum(1)) / norm
        hidden[rows] = (noise + a[:, None] * target).to(dtype)
        z = (hidden[rows] @ weight.t()).float()
        p[rows] = (z.gather(1, targets[rows, None]).squeeze(1) - z.logsumexp(1)).exp()
    run = torch.arange(n, device=device) // 64
    targets[((run + 1) * mask).floor() > (run * mask).floor()] = IGNORED
    target_idx = (targets != IGNORED).nonzero().squeeze(1)
    p = p[target_idx]
    thresholds = {
        rho: float(torch.quantile(p.double().cpu(), 1 - rho)) if rho else 2.0 for rho in rhos
    }
    return Problem(
        hidden.requires_grad_(), weight.requires_grad_(), targets, target_idx, p, thresholds
    )


def nll(rows: TokenStatistics, control: Any) -> tuple[Tensor, Tensor]:
    return -rows.logp, torch.ones_like(rows.logp)


def above(threshold: float) -> Any:
    """NLL of the tokens whose p is at least the threshold."""

    def objective(rows: TokenStatistics, control: Any) -> tuple[Tensor, Tensor]:
        s = (rows.logp.exp() >= threshold).to(rows.logp.dtype)
        return -s * rows.logp, s

    objective.sparse = True  # type: ignore[attr-defined]
    return objective


def ours(problem: Problem, rho: float = 1.0, **options: Any) -> Tensor:
    objective = nll if rho == 1 else above(problem.thresholds[rho])
    targets = problem.targets[problem.target_idx]
    return linear_objective(
        problem.hidden, problem.weight, targets, objective, target_idx=problem.target_idx, **options
    )[0]


def bare(problem: Problem) -> None:
    """The three matrix products of the valid rows, and nothing else: what no implementation that computes them can beat."""
    with torch.no_grad():
        x, every = problem.hidden, len(problem.target_idx) == len(problem.hidden)
        x = x if every else x[problem.target_idx]
        z = x @ problem.weight.t()
        d_x = z @ problem.weight
        problem.hidden.grad = (
            d_x
            if every
            else torch.zeros_like(problem.hidden).index_copy_(0, problem.target_idx, d_x)
        )
        problem.weight.grad = z.t() @ x


def naive(problem: Problem) -> Tensor:
    return F.cross_entropy(
        (problem.hidden @ problem.weight.t()).float(),
        problem.targets,
        ignore_index=IGNORED,
        reduction="sum",
    )


def checkpointed_chunks(problem: Problem, rows: int = 256) -> Tensor:
    """The valid rows in chunks whose logits are computed again in the backward pass, as TRL's chunked_nll does it."""

    def part(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.t()).float(), y, reduction="sum")

    valid = problem.targets != IGNORED  # as TRL finds them: by waiting for the device
    chunks = zip(problem.hidden[valid].split(rows), problem.targets[valid].split(rows), strict=True)
    loss = problem.hidden.new_zeros((), dtype=torch.float32)
    for x, y in chunks:
        loss = loss + checkpoint(part, x, problem.weight, y, use_reentrant=False)
    return loss


def of_torch(problem: Problem) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(
        problem.hidden,
        problem.weight,
        problem.targets,
        ignore_index=IGNORED,
        reduction="sum",
        options=options,
    )


def liger(problem: Problem, **options: Any) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum", **options)(
        problem.weight, problem.hidden, problem.targets
    )


def cce(problem: Problem, **options: Any) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(
        problem.hidden, problem.weight, problem.targets, reduction="sum", **options
    )


def candidates(device: str, rhos: list[float]) -> dict[str, Run]:
    """Name -> run. Those marked with a star compute another gradient than NLL's."""
    runs: dict[str, Run] = {"bare products": bare, "ours": ours}
    if device == "cuda":
        runs["ours, bf16 logits"] = partial(ours, logits_dtype=torch.bfloat16)
        runs["ours, torch"] = partial(ours, implementation="torch")
    mode = {"logits_dtype": torch.bfloat16} if device == "cuda" else {}
    runs |= {f"ours, rho={rho:g} *": partial(ours, rho=rho, **mode) for rho in rhos}
    runs |= {"naive": naive, "checkpointed chunks": checkpointed_chunks}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        runs["torch"] = of_torch
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        runs |= {"liger": liger, "liger, fp32 sums": partial(liger, accum_dtype=torch.float32)}
        runs["liger, token scaling *"] = partial(liger, use_token_scaling=True)
    if device == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        runs |= {"cce": cce, "cce, exact": partial(cce, filter_eps=None)}
    return runs
