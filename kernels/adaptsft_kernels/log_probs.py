"""log p of every token, differentiable token by token, for three products of a head's size.

The gradient of the logits is a_i G_i. Only the number a_i needs what autograd knows in the backward
pass alone: G, of the factors' dtype, is kept from the forward pass, so that nothing is computed
twice. Both halves are operators of torch, which a compiled function calls without a break.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaptsft_kernels.checks import as_autocast, check_head, check_range, dtype_of_logits
from adaptsft_kernels.chunks import rows_held
from adaptsft_kernels.gradients import (
    coefficients,
    d_bias,
    d_hidden,
    scaled_rows,
    unrounded_reductions,
)
from adaptsft_kernels.implementations import choose_implementation, row_kernels
from adaptsft_kernels.row_kernels import Head, accumulator, factors, product, row_stride
from adaptsft_kernels.token_statistics import statistics_of

NAMES = ("logp", "one_minus_p", "entropy", "collision", "top1", "top_logp")  # of linear_rows


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    chunk_size: int = 0,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(log p of each target, entropy of each distribution), nats, [...] fp32 (fp64 for fp64).

    hidden [...,D], weight [V,D], targets int64 [...]; logits and the other arguments are those of
    `linear_objective`. log p is differentiable once with respect to hidden, weight and bias; the
    entropy is a constant to autograd. Where the target is `ignore_index` both are 0, without
    gradient; such rows cost what others cost, so leave them out where they are many.

    If a gradient is wanted, G [N,V] in the dtype of weight is kept until the backward pass:
    torch.utils.checkpoint over slices of the tokens bounds that, for a fourth product. weight must
    be whole in the backward pass too, as FSDP2 sees to for the parameters of a wrapped module.

    Raises ValueError as `linear_objective` does.
    """
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    rows, y = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must be {tuple(hidden.shape[:-1])}, like hidden; found {tuple(targets.shape)}"
        )
    check_head(rows, weight, {"targets": y}, None, bias)
    leaves = [x for x in (rows, weight, bias) if x is not None]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    options = softcap, logit_scale, ignore_index, chunk_size, implementation, logits_dtype, keep
    logp, _, entropy, *_ = linear_rows(rows, weight, y, bias, *options)
    return logp.view(targets.shape), entropy.view(targets.shape)


@torch.library.custom_op("adaptsft::linear_rows", mutates_args=())
def linear_rows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    chunk_size: int = 0,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp, one_minus_p, entropy, collision, top1 and top_logp as in TokenStatistics, coefficient
    [N], and G [N, row_stride(V)] in the dtype of the products (without `keep` [0, ...]).

    The gradient of the logits by log p of their target is -coefficient G. Of the results, log p
    alone is differentiable; for what else depends on the logits through G alone, give
    `linear_rows_backward` the factor of each row.
    """
    weight = factors(weight)
    dtype, (count, vocabulary) = accumulator(weight.dtype), (len(hidden), len(weight))
    logits_dtype = dtype_of_logits(logits_dtype, hidden.dtype)
    implementation = choose_implementation(implementation, hidden.device, hidden.dtype)
    device = hidden.device.type
    held, _ = rows_held(count, vocabulary, weight.dtype, logits_dtype, device, chunk_size)
    head, g = Head(weight, bias, softcap, logit_scale), _room(weight, count if keep else 0)
    ignored = targets == ignore_index
    y = targets.masked_fill(ignored, 0)
    check_range(y, vocabulary)
    results: list[list[Tensor]] = []
    with torch.autocast(device, enabled=False), unrounded_reductions():
        rows = min(held, count)
        kernels = row_kernels(implementation, head, dtype, logits_dtype, rows, len(g), g)
        for start in range(0, count, held):
            span = slice(start, start + held)
            sums, _ = kernels.sums(hidden[span].to(weight.dtype), y[span], (), append=keep)
            if keep and implementation == "torch":
                g[span] = pad(kernels.take(), (0, g.shape[1] - vocabulary))
            tokens = statistics_of(sums, {}, None, None)
            factor = coefficients(sums, tokens.one_minus_p, weight.dtype, softcap)
            results.append([*tokens[:6], factor])
    empty = [hidden.new_empty(0, dtype=d) for d in _dtypes(dtype)]
    of_rows = [torch.cat(parts) for parts in zip(empty, *results, strict=True)]
    return *(x.masked_fill(ignored, 0) for x in of_rows), g  # type: ignore[return-value]


@linear_rows.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    chunk_size: int = 0,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
    keep: bool = True,
) -> tuple[Tensor, ...]:
    dtype = accumulator(weight.dtype)
    of_rows = [hidden.new_empty(len(hidden), dtype=d) for d in _dtypes(dtype)]
    product_dtype = factors(weight.new_empty(0)).dtype
    return *of_rows, _room(weight, len(hidden) if keep else 0, product_dtype)


def _dtypes(dtype: torch.dtype) -> list[torch.dtype]:
    return [torch.bool if name == "top1" else dtype for name in (*NAMES, "coefficient")]


def _room(weight: Tensor, rows: int, dtype: torch.dtype | None = None) -> Tensor:
    return weight.new_empty(rows, row_stride(len(weight)), dtype=dtype or weight.dtype)


@torch.library.custom_op("adaptsft::linear_rows_backward", mutates_args=())
def linear_rows_backward(
    g: Tensor, a: Tensor, hidden: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """d hidden [N,D], d weight [V,D] and d bias [V] of logits whose gradient is a G: g of
    `linear_rows`, a [N] fp32. Those not `wanted`, of the three, are empty.

    Raises ValueError where `linear_rows` has kept no G.
    """
    if len(g) != len(hidden):
        raise ValueError("linear_rows was called with keep=False: there is no G to go back with")
    head = Head(factors(weight), None, None, 1.0)
    g, empty = g[:, : len(weight)], weight.new_empty(0)
    results = [empty, empty.clone(), empty.clone()]
    with torch.autocast(g.device.type, enabled=False), unrounded_reductions():
        if wanted[0]:
            results[0] = d_hidden(g, a, head).to(hidden.dtype)
        if wanted[1]:
            x = scaled_rows(hidden, a, g.dtype)
            results[1] = product(g.t(), x, torch.empty_like(head.weight)).to(weight.dtype)
        if wanted[2]:
            results[2] = d_bias(g, a).to(weight.dtype)
    return results[0], results[1], results[2]


@linear_rows_backward.register_fake
def _(
    g: Tensor, a: Tensor, hidden: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    like = hidden.new_empty(hidden.shape), torch.empty_like(weight), weight.new_empty(len(weight))
    found = [x if w else weight.new_empty(0) for x, w in zip(like, wanted, strict=True)]
    return found[0], found[1], found[2]


def _setup(ctx, inputs, output) -> None:
    hidden, weight, _, bias, _, ctx.logit_scale, *_ = inputs
    # not needs_input_grad, which ends at the last argument that was given
    ctx.wanted = [x is not None and x.requires_grad for x in (hidden, weight, bias)]
    *_, coefficient, g = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(hidden, weight, coefficient, g)


def _backward(ctx, d_logp: Tensor, *_: Tensor):
    hidden, weight, coefficient, g = ctx.saved_tensors
    a = d_logp * coefficient * -ctx.logit_scale
    results = linear_rows_backward(g, a, hidden, weight, ctx.wanted)
    of_hidden, of_weight, of_bias = (
        x if wanted else None for x, wanted in zip(results, ctx.wanted, strict=True)
    )
    return of_hidden, of_weight, None, of_bias, *[None] * 7


linear_rows.register_autograd(_backward, setup_context=_setup)
