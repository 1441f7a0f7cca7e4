"""Cross entropy of a linear head, in the forms that other packages have it in."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adaptsft_kernels.checks import as_autocast, check_head, check_range, dtype_of_logits
from adaptsft_kernels.implementations import choose_implementation
from adaptsft_kernels.linear_objective import Tokens, loss_and_gradients
from adaptsft_kernels.log_probs import linear_logprobs
from adaptsft_kernels.row_kernels import Head, accumulator, factors
from adaptsft_kernels.token_statistics import TokenStatistics


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    logit_scale: float = 1.0,
    chunk_size: int = 0,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
) -> Tensor:
    """F.cross_entropy of the logits, which are never held: fp32 (fp64 for fp64), nats.

    hidden [...,D], weight [V,D], targets int64 [...], in cut-cross-entropy's order; bias [V].
    reduction: "mean" over the targets that are not `ignore_index` (0 where there are none), "sum",
    or "none": one loss per target [...], 0 at `ignore_index`, for which G [N,V] is kept as in
    `linear_logprobs`. The others are as in `linear_objective`, and so are the errors. On CUDA,
    "mean" and "sum" wait once for the device, for the number of targets.
    """
    options: dict[str, Any] = {"chunk_size": chunk_size, "implementation": implementation}
    if reduction == "none":
        options |= {"softcap": softcap, "logit_scale": logit_scale, "logits_dtype": logits_dtype}
        return -linear_logprobs(
            hidden, weight, targets, bias, ignore_index=ignore_index, **options
        )[0]
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: choose mean, sum or none")
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must be {tuple(hidden.shape[:-1])}, like hidden; found {tuple(targets.shape)}"
        )
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    rows, y = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    check_head(rows, weight, {"targets": y}, None, bias)
    leaves = (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in leaves]
    numbers = ignore_index, softcap, logit_scale, chunk_size, implementation, logits_dtype
    return _reduced(rows, weight, y, bias, *numbers, reduction == "mean", wanted)[0]


class LinearCrossEntropy(nn.Module):
    """`linear_cross_entropy` as a module without parameters, called as Liger's
    LigerFusedLinearCrossEntropyLoss is: loss(weight, hidden, targets, bias)."""

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        softcap: float | None = None,
        reduction: str = "mean",
        logit_scale: float = 1.0,
        chunk_size: int = 0,
        implementation: str = "auto",
        logits_dtype: torch.dtype | None = None,
    ):
        """The keyword arguments of `linear_cross_entropy`."""
        super().__init__()
        self.options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap}
        self.options |= {"reduction": reduction, "logit_scale": logit_scale}
        self.options |= {"chunk_size": chunk_size, "implementation": implementation}
        self.options |= {"logits_dtype": logits_dtype}

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return linear_cross_entropy(_input, lin_weight, target, bias, **self.options)


def nll(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
    """-log p, as an objective of `linear_objective`."""
    return -tokens.logp, torch.ones_like(tokens.logp)


@torch.library.custom_op("adaptsft::linear_cross_entropy", mutates_args=())
def _reduced(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    chunk_size: int,
    implementation: str,
    logits_dtype: torch.dtype | None,
    mean: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients, those that are not `wanted` empty."""
    idx = (targets != ignore_index).nonzero().squeeze(1)
    tokens = Tokens(targets[idx], idx)
    check_range(tokens.targets, len(weight))
    head = Head(factors(weight), bias, softcap, logit_scale)
    implementation = choose_implementation(implementation, hidden.device, hidden.dtype)
    scale = 1.0 / max(len(idx), 1) if mean else 1.0
    logits_dtype = dtype_of_logits(logits_dtype, hidden.dtype)
    choices = scale, False, chunk_size, implementation, logits_dtype
    loss, _, grads = loss_and_gradients(hidden, head, tokens, nll, wanted, *choices)
    results = [weight.new_empty(0) if g is None else g.to(weight.dtype) for g in grads]
    return loss, results[0], results[1], results[2]


@_reduced.register_fake
def _(hidden: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, wanted = others
    like = torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(len(weight))
    found = [x if w else weight.new_empty(0) for x, w in zip(like, wanted, strict=True)]
    return weight.new_empty((), dtype=accumulator(weight.dtype)), found[0], found[1], found[2]


def _setup(ctx, inputs, output) -> None:
    ctx.wanted = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


@once_differentiable
def _backward(ctx, upstream: Tensor, *_: Tensor):
    # the upstream gradient is 1 or a power of two, mostly: bf16 gradients are not rounded again
    of_hidden, of_weight, of_bias = (
        (g * upstream).to(g.dtype) if w else None
        for g, w in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return of_hidden, of_weight, None, of_bias, *[None] * 8


_reduced.register_autograd(_backward, setup_context=_setup)
