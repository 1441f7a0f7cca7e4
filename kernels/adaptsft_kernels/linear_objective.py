"""The loss of a linear head under any objective f(p), without ever holding the logits as a whole.

Every objective f of the target's probability p gives the logit gradient dz_i = weight (p_i -
delta_iy), with the token weight -p f'(p). An objective is therefore a function from the per-token
statistics to (loss, weight), and everything else is shared. Gradients are computed in the forward
pass and scaled by the upstream gradient in the backward pass. Per chunk of rows:

    logits = x W^T -> sums per row, and G -> TokenStatistics -> the objective, in plain torch on [n]
    -> d hidden = a (G W), d weight = G^T (a x)

dz factorises: in dz_i = a_i G_i, only the number a_i of a row depends on the objective, so that one
pass over a row both sums it and writes G. Passes over [n,V] are those of `torch_rows` or
`triton_rows`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptsft_kernels.checks import as_autocast, check_head, check_range, dtype_of_logits
from adaptsft_kernels.chunks import rows_held
from adaptsft_kernels.gradients import (
    GradientSums,
    LossWithGradients,
    coefficients,
    unrounded_reductions,
)
from adaptsft_kernels.implementations import choose_implementation, row_kernels
from adaptsft_kernels.row_kernels import Head, RowKernels, accumulator, factors
from adaptsft_kernels.token_statistics import (
    ON_REQUEST,
    Sums,
    TokenOutputs,
    TokenStatistics,
    statistics_of,
)

# of a bf16 sum of d weight: they cost 1e-3 each, and are allowed only where bf16 logits cost 6e-3
MOST_ROUNDINGS = 4
Objective = Callable[[TokenStatistics, Any], tuple[Tensor, Tensor]]


@torch.compiler.disable(reason="the objective is any function: linear_logprobs can be compiled")
def linear_objective(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objective: Objective,
    state: Any = None,
    *,
    source: Tensor | None = None,
    sequence: Tensor | None = None,
    token_weight: Tensor | None = None,
    reference: Any = None,
    target_idx: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    scale: float | Tensor = 1.0,
    chunk_size: int = 0,
    ignore_index: int = -100,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
    skip_zeros: bool | None = None,
    unit_upstream: bool = False,
) -> tuple[Tensor, TokenOutputs]:
    """scale * sum of the objective over the target tokens, and the statistics of each of them.

    hidden [N,D] and weight [V,D] are both fp32, bf16 or fp64, or cast by autocast as for a linear
    layer; statistics and accumulators are fp32 (fp64 for fp64). targets int64 [N]; rows whose
    target is `ignore_index` cost nothing. On CUDA, finding them waits for the device, so a caller
    who knows the others passes `target_idx` int64 [n] (distinct rows of hidden); all other [N]
    below are then [n].

    objective(tokens, state) -> (loss [n], weight [n]) sees the tokens of one chunk at a time, or
    all of the call at once if it has `whole_batch = True` (the logits are then computed twice).
    `needs` asks for statistics of ON_REQUEST. Both results are constants to autograd: the gradient
    of the logits is weight (p_i - delta_iy), whatever the loss. state is a NamedTuple of tensors
    [S], gathered per token by source (None: entry 0 for all tokens) before the objective sees it.
    reference, a NamedTuple of tensors [N], is what is known of each token beforehand, such as under
    another model: the objective sees it as tokens.reference. token_weight fp32 [N], if given,
    multiplies both results of each token, and so what is returned of them. logits are softcap *
    tanh(logit_scale * (hidden @ weight.T + bias) / softcap).

    The loss is a 0-d fp32 (fp64) tensor, differentiable once with respect to hidden, weight and
    bias; without target tokens it is zero, with zero gradients. Two calls give the same bits.

    chunk_size: rows of logits held at a time (0: 48 MiB of them on CPU, 1.25 GiB on CUDA). Changes
    results by rounding only.
    implementation: "torch", "triton" (CUDA, fp32 and bf16), or "auto": Triton where it can run, see
    `choose_implementation`.
    logits_dtype: None for fp32 logits (fp64 for fp64); torch.bfloat16, with bf16 factors, is faster
    and rounds p (by 1 % and more) and, on CUDA, the sum of the weight's gradient at most four times
    instead of once.
    skip_zeros: tokens of weight 0 take no part in the two gradient products. On CUDA that waits for
    the device once per chunk, for the number of those that do; None therefore means: on CPU, or
    where the objective has `sparse = True`.
    unit_upstream: a promise that backward begins at this very loss, with gradient 1, which spares
    a pass over the gradients. It is checked, on CUDA by the device.

    Raises ValueError for shapes, dtypes and choices that do not fit each other, for targets outside
    of the vocabulary (on CUDA the device raises, later) and for a weight that is a DTensor.
    """
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    of_rows = {"targets": targets, "source": source, "sequence": sequence}
    of_rows["token_weight"] = token_weight
    if reference is not None:
        of_rows |= {f"reference.{name}": x for name, x in reference._asdict().items()}
    check_head(hidden, weight, of_rows, target_idx, bias)
    logits_dtype = dtype_of_logits(logits_dtype, hidden.dtype)
    implementation = choose_implementation(implementation, hidden.device, hidden.dtype)
    leaves = (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in leaves]
    if skip_zeros is None:
        skip_zeros = hidden.device.type == "cpu" or getattr(objective, "sparse", False)
    with torch.no_grad():
        if target_idx is None:
            target_idx = (targets != ignore_index).nonzero().squeeze(1)
            targets = targets[target_idx]
            source, sequence, token_weight = (
                None if x is None else x[target_idx] for x in (source, sequence, token_weight)
            )
            reference = _at(reference, target_idx)
        check_range(targets, len(weight))
        state = _per_token(state, source, len(targets))
        tokens = Tokens(targets, target_idx, sequence, token_weight, state, reference)
        head = Head(factors(weight), bias, softcap, logit_scale)
        choices = scale, skip_zeros, chunk_size, implementation, logits_dtype
        loss, outputs, grads = loss_and_gradients(hidden, head, tokens, objective, wanted, *choices)
    return LossWithGradients.apply(loss, unit_upstream, *leaves, *grads), outputs


class Tokens(NamedTuple):
    """What is known of the target tokens before any logit is computed."""

    targets: Tensor  # int64 [n]
    idx: Tensor  # int64 [n]: their rows of hidden
    sequence: Tensor | None = None  # int64 [n]
    weight: Tensor | None = None  # fp32 [n], of the objective's results
    state: Any = None  # a NamedTuple of [n], or None
    reference: Any = None  # likewise

    def at(self, span: slice) -> "Tokens":
        sequence, weight = (None if x is None else x[span] for x in (self.sequence, self.weight))
        state, reference = _at(self.state, span), _at(self.reference, span)
        return Tokens(self.targets[span], self.idx[span], sequence, weight, state, reference)


def loss_and_gradients(
    hidden: Tensor,
    head: Head,
    tokens: Tokens,
    objective: Objective,
    wanted: list[bool],
    scale: float | Tensor,
    skip_zeros: bool,
    chunk_size: int,
    implementation: str,
    logits_dtype: torch.dtype,
) -> tuple[Tensor, TokenOutputs, list[Tensor | None]]:
    """The loss (0-d), the statistics, and those `wanted` of the gradients of hidden, weight and
    bias, without autograd."""
    dtype, count = accumulator(hidden.dtype), len(tokens.targets)
    factor, device = head.weight, hidden.device.type
    held, gathered = rows_held(count, len(factor), factor.dtype, logits_dtype, device, chunk_size)
    if implementation == "torch":
        gathered = held
    capacity, rows = gathered if any(wanted) else 0, min(held, count)
    with torch.autocast(device, enabled=False), unrounded_reductions():
        kernels = row_kernels(implementation, head, dtype, logits_dtype, rows, capacity)
        rounded = logits_dtype == factor.dtype and count <= MOST_ROUNDINGS * gathered
        gradients = GradientSums(hidden, head, kernels, wanted, factor.dtype if rounded else dtype)
        loss, outputs = _over_chunks(
            hidden, head, kernels, gradients, tokens, objective, scale, skip_zeros, held
        )
        return loss, outputs, gradients.results()


def _over_chunks(
    hidden: Tensor,
    head: Head,
    kernels: RowKernels,
    gradients: GradientSums,
    tokens: Tokens,
    objective: Objective,
    scale: float | Tensor,
    skip_zeros: bool,
    chunk_size: int,
) -> tuple[Tensor, TokenOutputs]:
    """The loss and the statistics; the gradients are left in `gradients`."""
    count = len(tokens.targets)
    spans = [slice(i, min(i + chunk_size, count)) for i in range(0, count, chunk_size)]
    wanted = [name for name in ON_REQUEST if name in getattr(objective, "needs", ())]
    one_pass = any(gradients.wanted) and not skip_zeros

    def statistics_at(chunk: Tokens, append: bool = False) -> tuple[TokenStatistics, Sums]:
        x = hidden[chunk.idx].to(head.weight.dtype)
        sums, requested = kernels.sums(x, chunk.targets, wanted, append)
        return statistics_of(sums, requested, chunk.sequence, chunk.reference), sums

    whole = None
    if getattr(objective, "whole_batch", False) and spans:
        parts = [statistics_at(tokens.at(span))[0] for span in spans]
        every = TokenStatistics(*map(_cat, zip(*(part[:-1] for part in parts), strict=True)))
        whole = _evaluate(objective, every._replace(reference=tokens.reference), tokens)

    outputs = []
    for span in spans:
        chunk = tokens.at(span)
        if one_pass:
            gradients.make_room(len(chunk.targets))
        statistics, sums = statistics_at(chunk, append=one_pass)
        if whole is not None:
            loss, weight = whole[0][span], whole[1][span]
        else:
            loss, weight = _evaluate(objective, statistics, chunk)
        outputs.append(TokenOutputs(*statistics[:6], loss, weight))
        if not any(gradients.wanted):
            continue
        # dz_i = weight (p_i - delta_iy) = a G_i: p - 1 is never formed
        a = scale * head.logit_scale * weight
        a = a * coefficients(sums, statistics.one_minus_p, head.weight.dtype, head.softcap)
        idx = chunk.idx
        if skip_zeros:
            active = (weight * statistics.one_minus_p).nonzero().squeeze(1)  # a NaN is active
            active = None if len(active) == len(weight) else active
            if active is not None:
                idx, a = idx[active], a[active]
            gradients.make_room(len(idx))
            kernels.append(chunk.targets, sums, active)
        gradients.appended(idx, a, last=span is spans[-1])

    dtype = accumulator(hidden.dtype)
    empty = [
        hidden.new_empty(0, dtype=torch.bool if name == "top1" else dtype)
        for name in TokenOutputs._fields
    ]
    result = TokenOutputs(*map(_cat, zip(empty, *outputs, strict=True)))
    return scale * result.loss.sum(), result


def _cat(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts)


def _evaluate(
    objective: Objective, statistics: TokenStatistics, tokens: Tokens
) -> tuple[Tensor, Tensor]:
    loss, weight = objective(statistics, tokens.state)
    shape, dtype = statistics.logp.shape, statistics.logp.dtype
    for name, value in (("loss", loss), ("weight", weight)):
        if value.shape != shape:
            raise ValueError(
                f"the objective returned {name} of shape {tuple(value.shape)}: "
                f"one value per token is needed, [{shape[0]}]"
            )
    loss, weight = loss.detach().to(dtype), weight.detach().to(dtype)
    if tokens.weight is None:
        return loss, weight
    return loss * tokens.weight, weight * tokens.weight


def _at(values: Any, rows: Any) -> Any:
    """The NamedTuple of tensors at these rows; None stays None."""
    return None if values is None else type(values)(*(x[rows] for x in values))


def _per_token(state: Any, source: Tensor | None, count: int) -> Any:
    if state is None:
        return None
    return type(state)(*(x[:1].expand(count) if source is None else x[source] for x in state))
