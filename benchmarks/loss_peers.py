"""What benchmarks/loss_kernels.py compares: ways to get the loss of a head and its gradients, on
data whose p look like those of fine-tuning."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adaptsft_kernels import TokenStatistics, linear_logprobs, linear_objective

IGNORED = -100


class Problem(NamedTuple):
    hidden: Tensor  # [N,D], a leaf
    weight: Tensor  # [V,D], a leaf
    targets: Tensor  # int64 [N], IGNORED where nothing is learned
    target_idx: Tensor  # int64 [n]: what a data loader knows
    p: Tensor  # fp32 [n], of the targets
    # rho -> the p above which a share rho of the target tokens lies; known before the clock starts
    thresholds: dict[float, float]


# the loss, to be differentiated; None where the gradients are computed already
Run = Callable[[Problem], Tensor | None]


def make_problem(
    n: int, d: int, v: int, mask: float, rhos: list[float], device: torch.device, dtype: torch.dtype
) -> Problem:
    """hidden = noise + a W_y, with a chosen per row so that p of the target follows Beta(.6, .2):
    most tokens known, some not at all.

    Random logits would be near uniform: every p tiny, every softmax flat, and kernels that drop
    small entries would drop all. The other logits have standard deviation 2. Rows without a target
    come in runs of 64, as prompts do.
    """
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(v, d, generator=generator, device=device).mul_(d**-0.5).to(dtype)
    targets = torch.randint(0, v, (n,), generator=generator, device=device)
    hidden = torch.empty(n, d, device=device, dtype=dtype)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = torch.linspace(1e-6, 1 - 1e-6, 20001, dtype=torch.float64)
    density = (grid ** (0.6 - 1) * (1 - grid) ** (0.2 - 1)).cumsum(0)
    quantiles = torch.searchsorted(density / density[-1], uniform).clamp(max=20000)
    wanted = grid[quantiles].logit().float().to(device)
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
    on_cpu = p.double().cpu()
    thresholds = {rho: float(torch.quantile(on_cpu, 1 - rho)) if rho else 2.0 for rho in rhos}
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    return Problem(hidden, weight, targets, target_idx, p, thresholds)


def nll(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
    return -tokens.logp, torch.ones_like(tokens.logp)


def above(threshold: float) -> Any:
    """NLL of the tokens whose p is at least the threshold."""

    def objective(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
        weight = (tokens.logp.exp() >= threshold).to(tokens.logp.dtype)
        return -weight * tokens.logp, weight

    objective.sparse = True  # type: ignore[attr-defined]
    return objective


def ours(problem: Problem, rho: float = 1.0, **options: Any) -> Tensor:
    objective = nll if rho == 1 else above(problem.thresholds[rho])
    idx = problem.target_idx
    call = problem.hidden, problem.weight, problem.targets[idx], objective
    return linear_objective(*call, target_idx=idx, **options)[0]


def log_probs(problem: Problem) -> Tensor:
    """log p per token, differentiable, as losses of one's own take it."""
    idx = problem.target_idx
    return -linear_logprobs(problem.hidden[idx], problem.weight, problem.targets[idx])[0].sum()


def trl_head(problem: Problem) -> Tensor:
    """The same by TRL's fused head, with the entropy that `log_probs` gives too."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    learned = problem.targets != IGNORED  # as TRL finds them: by waiting for the device
    call = problem.hidden[learned], problem.weight, None, problem.targets[learned]
    options = 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy")
    return -_ChunkedLogProbFunction.apply(*call, *options)[0].sum()


def bare(problem: Problem) -> None:
    """The three matrix products of the rows with a target, and nothing else: what no implementation
    that computes them can beat."""
    hidden, weight, idx = problem.hidden, problem.weight, problem.target_idx
    with torch.no_grad():
        every = len(idx) == len(hidden)
        x = hidden if every else hidden[idx]
        z = x @ weight.t()
        d_x = z @ weight
        hidden.grad = d_x if every else torch.zeros_like(hidden).index_copy_(0, idx, d_x)
        weight.grad = z.t() @ x


WHOLE: dict[str, Any] = {"ignore_index": IGNORED, "reduction": "sum"}


def naive(problem: Problem) -> Tensor:
    logits = (problem.hidden @ problem.weight.t()).float()
    return F.cross_entropy(logits, problem.targets, **WHOLE)


def checkpointed_chunks(problem: Problem, rows: int = 256) -> Tensor:
    """The rows with a target in chunks, whose logits are computed again in the backward pass, as
    TRL's chunked_nll does it."""

    def part(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.t()).float(), y, reduction="sum")

    learned = problem.targets != IGNORED  # as TRL finds them: by waiting for the device
    hidden, targets = problem.hidden[learned], problem.targets[learned]
    loss = problem.hidden.new_zeros((), dtype=torch.float32)
    for x, y in zip(hidden.split(rows), targets.split(rows), strict=True):
        loss = loss + checkpoint(part, x, problem.weight, y, use_reentrant=False)
    return loss


def of_torch(problem: Problem) -> Tensor:
    call = problem.hidden, problem.weight, problem.targets
    return F.linear_cross_entropy(*call, **WHOLE, options=torch.nn.LinearCrossEntropyOptions())


def liger(problem: Problem, **options: Any) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", **options)
    return loss(problem.weight, problem.hidden, problem.targets)


def cce(problem: Problem, **options: Any) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    call = problem.hidden, problem.weight, problem.targets
    return linear_cross_entropy(*call, reduction="sum", **options)


def candidates(device: str, rhos: list[float]) -> dict[str, Run]:
    """Name -> run. Those marked with a star compute another gradient than NLL's."""
    runs: dict[str, Run] = {"bare products": bare, "ours": ours}
    if device == "cuda":
        runs["ours, bf16 logits"] = partial(ours, logits_dtype=torch.bfloat16)
        runs["ours, two passes"] = partial(ours, skip_zeros=True)
        runs["ours, torch"] = partial(ours, implementation="torch")
    mode = {"logits_dtype": torch.bfloat16} if device == "cuda" else {}
    runs |= {f"ours, rho={rho:g} *": partial(ours, rho=rho, **mode) for rho in rhos}
    runs |= {"log probs, ours": log_probs}
    if importlib.util.find_spec("trl"):
        runs |= {"log probs, TRL": trl_head}
    runs |= {"naive": naive, "checkpointed chunks": checkpointed_chunks}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        runs["torch"] = of_torch
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        runs |= {"liger": liger, "liger, fp32 sums": partial(liger, accum_dtype=torch.float32)}
        runs["liger, token scaling *"] = partial(liger, use_token_scaling=True)
    if device == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        runs |= {"cce": cce, "cce, exact": partial(cce, filter_eps=None)}
    return runs
