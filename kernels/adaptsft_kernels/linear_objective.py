"""The loss of a linear head under any objective f(p), in chunks of rows: the [tokens, vocabulary] logits never exist as a whole.

Every objective f of the target's probability p gives the logit gradient dz_i = s (p_i - delta_iy) with s = -p f'(p), so the
objective is a function from row statistics to (loss, s) and everything else is shared. Gradients are computed in the forward
pass (three matrix products per chunk: logits, d hidden, d weight) and scaled by the upstream gradient in the backward pass.

The target is kept out of the running sum. With u = logsumexp(other logits) - z_y:  log p = -softplus(u),  1 - p = sigmoid(u),
p_i = (1 - p) softmax(others)_i. No difference of nearly equal numbers occurs, so 1 - p and p_y - 1 keep their relative accuracy
where fp32 `p - 1` is zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOWEST = -1e30  # stands for -inf; finite, so that 0 * LOWEST is 0 and not NaN
TOP_K = 20  # EAFT (arXiv:2601.02151) takes the entropy of this many likeliest tokens
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


class Rows(NamedTuple):
    """What an objective may look at: one entry per row, detached; fp32, or fp64 for fp64 inputs."""

    logp: Tensor  # log p of the target, nats
    one_minus_p: Tensor  # 1 - p, with full relative accuracy near p = 1
    entropy: Tensor  # H = -sum_i p_i log p_i, nats
    collision: Tensor  # sum_i p_i^2
    top1: Tensor  # bool: no other token is likelier than the target
    top_entropy: Tensor | None = None  # entropy of the 20 likeliest tokens, renormalised; only if the objective needs "top_entropy"
    sequence: Tensor | None = None  # int64 index of the row's sequence within this call, where the caller gave it


class RowStatistics(NamedTuple):
    """Returned for every valid row, in order, detached: [n_valid]."""

    logp: Tensor
    one_minus_p: Tensor
    entropy: Tensor
    collision: Tensor
    top1: Tensor
    loss: Tensor  # the objective's loss of the row, before `scale`
    weight: Tensor  # s


Objective = Callable[[Rows, Any], tuple[Tensor, Tensor]]


class _Head(NamedTuple):
    """The linear map to logits, z = cap tanh(logit_scale (x W^T + b) / cap), and what the loss adds to the objective."""

    weight: Tensor  # [V,D]
    bias: Tensor | None  # [V]
    softcap: float | None
    logit_scale: float
    z_loss: float
    scale: float | Tensor
    dtype: torch.dtype  # of logits, statistics and accumulators


class _Chunk(NamedTuple):
    hidden: Tensor  # [n,D]
    labels: Tensor  # [n]
    rows: Rows
    others: Tensor  # [n,V] exp(z - max of the others), 0 at the target
    total: Tensor  # [n] sum of others
    lse: Tensor  # [n] logsumexp of all logits
    slope: Tensor | None  # [n,V] derivative of the soft cap


def linear_objective(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    objective: Objective,
    control: Any = None,
    *,
    source: Tensor | None = None,
    sequence: Tensor | None = None,
    valid_idx: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    scale: float | Tensor = 1.0,
    chunk_size: int = 0,
    ignore_index: int = -100,
) -> tuple[Tensor, RowStatistics]:
    """scale * sum of the objective over the valid rows (+ scale * z_loss * sum of lse^2), and the statistics of every valid row.

    hidden [N,D] and weight [V,D] are both fp32, bf16 or fp64; logits, statistics and accumulators are fp32 (fp64 for fp64).
    labels int64 [N]; rows whose label is `ignore_index` cost nothing. Finding them waits for the device on CUDA, so a caller who
    knows them passes `valid_idx` int64 [n_valid] (distinct rows of hidden); labels, source and sequence are then [n_valid] too.

    objective(rows, control) -> (loss [n], s [n]) sees one chunk of rows at a time, or all rows of the call at once if it has
    `whole_batch = True` (the logits are then computed twice). `needs = {"top_entropy"}` asks for that statistic. Both results are
    constants to autograd: the gradient is s (p_i - delta_iy), whatever the loss. control is a NamedTuple of tensors [S], gathered
    per row by source (None: entry 0 for all rows) before the objective sees it. logits are
    softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap).

    The loss is a 0-d fp32 (fp64) tensor, differentiable once with respect to hidden, weight and bias; where no row is valid it is
    zero, with zero gradients. On CPU rows with s = 0 are left out of the two gradient products; on CUDA nothing waits for the
    device. `chunk_size` rows of logits exist at a time (0: 64 MiB of them on CPU, 1 GiB elsewhere); it changes no result.
    Raises ValueError for shapes and dtypes that do not fit together.
    """
    _check(hidden, weight, labels, source, sequence, valid_idx, bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    chunk_size = chunk_size or max(1, CHUNK_BYTES.get(hidden.device.type, 1 << 30) // (weight.shape[0] * dtype.itemsize))
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        if valid_idx is None:
            valid_idx = (labels != ignore_index).nonzero().squeeze(1)
            labels = labels[valid_idx]
            source, sequence = (None if x is None else x[valid_idx] for x in (source, sequence))
        if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < weight.shape[0]:
            raise ValueError(f"labels must be in [0, {weight.shape[0]}), found {int(labels.min())} to {int(labels.max())}")
        if control is not None:
            control = type(control)(*(x[:1].expand(len(labels)) if source is None else x[source] for x in control))
        head = _Head(weight, bias, softcap, logit_scale, z_loss, scale, dtype)
        loss, statistics, grads = _loss_and_gradients(hidden, head, labels, valid_idx, sequence, objective, control, chunk_size, wanted)
    return _Loss.apply(loss, hidden, weight, bias, *grads), statistics


class _Loss(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *grads: Tensor | None) -> Tensor:
        ctx.save_for_backward(*grads)
        return loss.clone()

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        # not in place: a second backward through the same graph needs the saved tensors as they are
        return None, *(None if grad is None else grad_outputs[0] * grad for grad in ctx.saved_tensors), None, None, None


def _loss_and_gradients(
    hidden: Tensor,
    head: _Head,
    labels: Tensor,
    valid_idx: Tensor,
    sequence: Tensor | None,
    objective: Objective,
    control: Any,
    chunk_size: int,
    wanted: list[bool],
) -> tuple[Tensor, RowStatistics, list[Tensor | None]]:
    if hidden.device.type == "cpu":
        head = head._replace(weight=head.weight.to(head.dtype))  # bf16 products are slow on most CPUs and cannot return fp32 there
    d_hidden = torch.zeros_like(hidden) if wanted[0] else None
    # fp32 across chunks: a bf16 accumulator loses small contributions (6.9e-3 relative over 32 chunks)
    d_weight = torch.zeros_like(head.weight, dtype=head.dtype) if wanted[1] else None
    d_bias = torch.zeros_like(head.weight[:, 0], dtype=head.dtype) if wanted[2] else None

    spans = [slice(start, start + chunk_size) for start in range(0, len(labels), chunk_size)]
    needs = getattr(objective, "needs", frozenset())
    chunk_at = partial(_chunk, hidden, head, labels, valid_idx, sequence, needs)
    whole = None
    if getattr(objective, "whole_batch", False) and spans:
        every = [chunk_at(span).rows for span in spans]
        whole = _call(objective, Rows(*map(_cat, zip(*every, strict=True))), control)

    statistics, z_total = [], labels.new_zeros((), dtype=head.dtype)
    for span in spans:
        chunk = chunk_at(span)
        if whole is not None:
            loss, s = whole[0][span], whole[1][span]
        else:
            loss, s = _call(objective, chunk.rows, None if control is None else type(control)(*(x[span] for x in control)))
        statistics.append(RowStatistics(*chunk.rows[:5], loss, s))
        if head.z_loss:
            z_total += chunk.lse.square().sum()
        if any(wanted):
            _add_gradients(chunk, s, head, valid_idx[span], d_hidden, d_weight, d_bias)
        del chunk  # before the next one is built: its [n,V] buffer is the memory that chunks exist to bound

    empty = [hidden.new_empty(0, dtype=torch.bool if name == "top1" else head.dtype) for name in RowStatistics._fields]
    result = RowStatistics(*map(_cat, zip(empty, *statistics, strict=True)))
    total = head.scale * (result.loss.sum() + head.z_loss * z_total)
    if d_weight is not None:
        d_weight = d_weight.to(hidden.dtype)
    if d_bias is not None:
        d_bias = d_bias.to(hidden.dtype)
    return total, result, [d_hidden, d_weight, d_bias]


def _cat(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts)


def _call(objective: Objective, rows: Rows, control: Any) -> tuple[Tensor, Tensor]:
    loss, s = objective(rows, control)
    for name, value in (("loss", loss), ("s", s)):
        if value.shape != rows.logp.shape:
            raise ValueError(
                f"the objective returned {name} of shape {tuple(value.shape)}: one value per row is needed, [{len(rows.logp)}]"
            )
    return loss.detach().to(rows.logp.dtype), s.detach().to(rows.logp.dtype)


def _chunk(
    hidden: Tensor, head: _Head, labels: Tensor, valid_idx: Tensor, sequence: Tensor | None, needs: frozenset[str], span: slice
) -> _Chunk:
    """Logits and statistics of the rows in span. Two [n,V] buffers exist here (three with a soft cap)."""
    x, y = hidden[valid_idx[span]].to(head.weight.dtype), labels[span].unsqueeze(1)
    z, slope = _product(x, head.weight.t(), head.dtype), None
    if head.bias is not None:
        z.add_(head.bias)
    if head.logit_scale != 1.0:
        z.mul_(head.logit_scale)
    if head.softcap:
        z.div_(head.softcap).tanh_()
        slope = 1 - z.square()
        z.mul_(head.softcap)
    if head.bias is not None:
        z.clamp_(min=LOWEST)  # a bias of -inf rules a token out
    top_entropy = None
    if "top_entropy" in needs:
        top = z.topk(min(TOP_K, z.shape[1]), dim=1).values.log_softmax(1)
        top_entropy = -(top.exp() * top).sum(1)

    target = z.gather(1, y).squeeze(1)
    z.scatter_(1, y, LOWEST)
    highest = z.amax(1)
    others = z.sub_(highest.unsqueeze(1)).exp()
    total = others.sum(1)  # at least 1
    u = total.log() + (highest - target)
    one_minus_p, logp = torch.sigmoid(u), F.logsigmoid(-u)
    p = logp.exp()
    # H = H2(p) + (1-p) H(others), with H(others) = log total - sum_i others_i (z_i - highest) / total
    entropy_others = total.log() - z.mul_(others).sum(1) / total
    entropy = torch.special.entr(one_minus_p) - p * logp + one_minus_p * entropy_others
    share = one_minus_p / total  # p_i = share * others_i
    collision = p.square() + (share * torch.linalg.vector_norm(others, dim=1)).square()
    rows = Rows(logp, one_minus_p, entropy, collision, target >= highest, top_entropy, None if sequence is None else sequence[span])
    return _Chunk(x, y, rows, others, total, target - logp, slope)


def _add_gradients(
    chunk: _Chunk, s: Tensor, head: _Head, idx: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None
) -> None:
    """Add the chunk's contribution: dz_i = a p_i - s delta_iy with a = s + 2 z_loss lse. The buffer `others` becomes dz."""
    m, x, y, dz, slope = chunk.rows.one_minus_p, chunk.hidden, chunk.labels, chunk.others, chunk.slope
    z_part = 2 * head.z_loss * chunk.lse
    at_others = head.scale * (s + z_part) * m / chunk.total
    at_target = head.scale * (z_part * chunk.rows.logp.exp() - s * m)  # p - 1 is never formed, and nothing is rounded to bf16 yet
    if dz.device.type == "cpu":
        active = ((s != 0) | (z_part != 0)).nonzero().squeeze(1)
        if len(active) < len(s):
            dz, x, y, idx, at_others, at_target = (t[active] for t in (dz, x, y, idx, at_others, at_target))
            slope = None if slope is None else slope[active]
    dz.mul_(at_others.unsqueeze(1)).scatter_(1, y, at_target.unsqueeze(1))
    if slope is not None:
        dz.mul_(slope)
    if head.logit_scale != 1.0:
        dz.mul_(head.logit_scale)
    if d_bias is not None:
        d_bias += dz.sum(0)
    dz = dz.to(x.dtype)
    if d_hidden is not None:
        d_hidden.index_copy_(0, idx, _product(dz, head.weight, head.dtype).to(d_hidden.dtype))
    if d_weight is not None:
        if x.dtype == d_weight.dtype:
            torch.addmm(d_weight, dz.t(), x, out=d_weight)
        else:
            torch.addmm(d_weight, dz.t(), x, out_dtype=d_weight.dtype, out=d_weight)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in dtype; for bf16 factors (CUDA only) the fp32 accumulator is returned as it is, without rounding to bf16."""
    return a @ b if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    source: Tensor | None,
    sequence: Tensor | None,
    valid_idx: Tensor | None,
    bias: Tensor | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden must be [N,D] and weight [V,D]; found {tuple(hidden.shape)} and {tuple(weight.shape)}")
    if hidden.dtype != weight.dtype or hidden.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(f"hidden and weight must both be fp32, bf16 or fp64; found {hidden.dtype} and {weight.dtype}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias must be [{len(weight)}] of {weight.dtype}, like weight; found {tuple(bias.shape)} of {bias.dtype}")
    rows, owner = (hidden, "hidden") if valid_idx is None else (valid_idx, "valid_idx")
    for name, value in (("labels", labels), ("source", source), ("sequence", sequence)):
        if value is not None and value.shape != rows.shape[:1]:
            raise ValueError(f"{name} must have one entry per row of {owner}, [{len(rows)}]; found {tuple(value.shape)}")
