"""The loss of a linear head under any objective f(p), in chunks of rows: the [tokens, vocabulary] logits never exist as a whole.

Every objective f of the target's probability p gives the logit gradient dz_i = s (p_i - delta_iy) with s = -p f'(p), so the
objective is a function from row statistics to (loss, s) and everything else is shared. Gradients are computed in the forward
pass and scaled by the upstream gradient in the backward pass. Per chunk of rows:

    logits = x W^T  ->  five sums per row  ->  Rows  ->  the objective, in plain torch on [n]  ->  dz  ->  d hidden, d weight

The passes over [n,V] are those of `torch_rows` or `triton_rows`; the rest is this file, whatever the device.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptsft_kernels.rows import (
    Head,
    RowKernels,
    Sums,
    TokenOutputs,
    TokenStatistics,
    product,
    rows_of,
)
from adaptsft_kernels.torch_rows import TorchRows

CHUNK_BYTES = {
    "cpu": 48 << 20,
    "cuda": 1280 << 20,
}  # of logits: 4096 rows of most vocabularies of today in bf16
GATHERED_BYTES = (
    2560 << 20
)  # of dz in Triton: 8192 rows. Every further addition to d weight reads and writes all of it
MOST_ROUNDINGS = 4  # of a bf16 sum of d weight. They cost 1e-3 each, and are allowed only where bf16 logits cost 6e-3 already
Objective = Callable[[TokenStatistics, Any], tuple[Tensor, Tensor]]


def linear_objective(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objective: Objective,
    control: Any = None,
    *,
    source: Tensor | None = None,
    sequence: Tensor | None = None,
    target_idx: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    scale: float | Tensor = 1.0,
    chunk_size: int = 0,
    ignore_index: int = -100,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
    skip_zeros: bool | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, TokenOutputs]:
    """scale * sum of the objective over the valid rows (+ scale * z_loss * sum of lse^2), and the statistics of every valid row.

    hidden [N,D] and weight [V,D] are both fp32, bf16 or fp64; statistics and accumulators are fp32 (fp64 for fp64).
    targets int64 [N]; rows whose label is `ignore_index` cost nothing. Finding them waits for the device on CUDA, so a caller who
    knows them passes `target_idx` int64 [n_valid] (distinct rows of hidden); targets, source and sequence are then [n_valid] too.

    objective(rows, control) -> (loss [n], s [n]) sees one chunk of rows at a time, or all rows of the call at once if it has
    `whole_batch = True` (the logits are then computed twice). `needs = {"top_entropy"}` asks for that statistic. Both results are
    constants to autograd: the gradient is s (p_i - delta_iy), whatever the loss. control is a NamedTuple of tensors [S], gathered
    per row by source (None: entry 0 for all rows) before the objective sees it. logits are
    softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap).

    The loss is a 0-d fp32 (fp64) tensor, differentiable once with respect to hidden, weight and bias; where no row is valid it is
    zero, with zero gradients. Two calls give the same bits.

    chunk_size: rows of logits held at a time (0: 48 MiB of them on CPU, 1.25 GiB on CUDA). Changes results by rounding only.
    implementation: "torch", "triton" (CUDA, fp32 and bf16), or "auto": Triton where it can run, see `choose_implementation`.
    logits_dtype: None for fp32 logits (fp64 for fp64); torch.bfloat16, with bf16 factors, is faster and rounds p (by 1 % and more)
    and, on CUDA, the sum of the weight's gradient at most four times instead of once.
    skip_zeros: rows with s = 0 take no part in the two gradient products. On CUDA that waits for the device once per chunk, for
    the number of rows that do; None therefore means: on CPU, or where the objective has `sparse = True`.
    eps: rows with |s| (1-p) <= eps are skipped too (0: exact). `dropped_share` of the statistics says how much that leaves out.

    Raises ValueError for shapes, dtypes and choices that do not fit together.
    """
    _check(hidden, weight, targets, source, sequence, target_idx, bias)
    dtype = _accumulator(hidden.dtype)
    if logits_dtype not in (None, dtype, hidden.dtype):
        raise ValueError(
            f"logits_dtype={logits_dtype} must be {dtype} or that of hidden, {hidden.dtype}"
        )
    if eps < 0:
        raise ValueError(f"eps={eps} must not be negative")
    chosen = choose_implementation(implementation, hidden.device, hidden.dtype)
    wanted = [
        torch.is_grad_enabled() and x is not None and x.requires_grad
        for x in (hidden, weight, bias)
    ]
    if skip_zeros is None:
        skip_zeros = hidden.device.type == "cpu" or getattr(objective, "sparse", False)
    with (
        torch.no_grad(),
        torch.autocast(hidden.device.type, enabled=False),
        _unrounded_reductions(),
    ):
        if target_idx is None:
            target_idx = (targets != ignore_index).nonzero().squeeze(1)
            targets = targets[target_idx]
            source, sequence = (None if x is None else x[target_idx] for x in (source, sequence))
        if (
            targets.device.type == "cpu"
            and targets.numel()
            and not 0 <= targets.min() <= targets.max() < weight.shape[0]
        ):
            raise ValueError(
                f"targets must be in [0, {weight.shape[0]}), found {int(targets.min())} to {int(targets.max())}"
            )
        if control is not None:
            control = type(control)(
                *(x[:1].expand(len(targets)) if source is None else x[source] for x in control)
            )
        # bf16 products are slow on most CPUs, and cannot return fp32 there
        factor = weight.detach().to(dtype) if hidden.device.type == "cpu" else weight.detach()
        head = Head(factor, bias, softcap, logit_scale)
        logits_dtype = logits_dtype or dtype
        chunk_size, gathered = rows_held(
            len(targets), len(weight), factor.dtype, logits_dtype, hidden.device.type, chunk_size
        )
        kernels: RowKernels
        if chosen == "torch":
            kernels, gathered = TorchRows(head, dtype, logits_dtype), chunk_size
        else:
            from adaptsft_kernels.triton_rows import (
                TritonRows,  # here, so that triton is needed only where it is used
            )

            kernels = TritonRows(
                head, logits_dtype, min(chunk_size, len(targets)), gathered if any(wanted) else 0
            )
        rounded = logits_dtype == factor.dtype and len(targets) <= MOST_ROUNDINGS * gathered
        gradients = _Gradients(hidden, head, wanted, factor.dtype if rounded else dtype)
        terms = _Terms(scale, z_loss, skip_zeros or eps > 0, eps)
        loss, statistics = _forward(
            hidden,
            kernels,
            gradients,
            targets,
            target_idx,
            sequence,
            objective,
            control,
            terms,
            head,
            chunk_size,
        )
    return _Loss.apply(loss, hidden, weight, bias, *gradients.results()), statistics


def choose_implementation(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch". auto: Triton for fp32 and bf16 on CUDA where the package is installed, torch otherwise.

    Raises ValueError for "triton" where it cannot run: nothing else is taken instead.
    """
    if implementation not in ("auto", "triton", "torch"):
        raise ValueError(f"implementation={implementation!r}: there is auto, triton and torch")
    missing = ""
    if importlib.util.find_spec("triton") is None:
        missing = "the package triton, which is not installed"
    elif dtype == torch.float64:
        missing = "fp32 or bf16 factors, not fp64"
    elif device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        missing = f"a CUDA device, not {device.type} (or its interpreter: TRITON_INTERPRET=1)"
    if implementation == "triton" and missing:
        raise ValueError(f"implementation=triton needs {missing}; choose torch or auto")
    if implementation == "auto":
        return "triton" if device.type == "cuda" and not missing else "torch"
    return implementation


def describe_implementation(
    device: torch.device,
    dtype: torch.dtype,
    implementation: str = "auto",
    logits_dtype: torch.dtype | None = None,
) -> str:
    """One line for a log: what `linear_objective` would use, such as "triton 3.6.0, bf16 factors, fp32 logits"."""
    chosen = choose_implementation(implementation, device, dtype)
    names = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}
    logits = logits_dtype or _accumulator(dtype)
    return f"{chosen} {version(chosen)}, {names[dtype]} factors, {names[logits]} logits"


def dropped_share(statistics: TokenOutputs, eps: float) -> Tensor:
    """What `eps` left out: the share of sum |s| (1-p), half the L1 norm of the logit gradients, that lies in rows below it. 0-d."""
    mass = (statistics.weight * statistics.one_minus_p).abs()
    return mass[mass <= eps].sum() / mass.sum().clamp(min=torch.finfo(mass.dtype).tiny)


class _Loss(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *grads: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*grads)
        ctx.dtype = hidden.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        # not in place: a second backward through the same graph needs the saved tensors as they are
        scaled = [
            None if grad is None else torch.empty_like(grad, dtype=ctx.dtype)
            for grad in ctx.saved_tensors
        ]
        for grad, out in zip(ctx.saved_tensors, scaled, strict=True):
            if out is not None:
                torch.mul(
                    grad, grad_outputs[0], out=out
                )  # a sum in fp32 is rounded here, in the pass that reads it anyway
        return None, *scaled, None, None, None


class _Terms(NamedTuple):
    """What the loss is besides the objective, and which rows may be left out of the gradient products."""

    scale: float | Tensor
    z_loss: float
    skip: bool
    eps: float


def rows_held(
    rows: int,
    vocabulary: int,
    factors: torch.dtype,
    logits: torch.dtype,
    device_type: str,
    chunk_size: int = 0,
) -> tuple[int, int]:
    """Of `rows` supervised rows: (those whose logits are held at a time, those whose dz is gathered for one product, in Triton).

    On CUDA as few and as equal parts as the two budgets allow: a product on few rows wastes the last of its tiles.
    """
    cuda = device_type != "cpu"
    most = max(1, CHUNK_BYTES["cuda" if cuda else "cpu"] // (vocabulary * logits.itemsize))
    gathers = max(1, -(-rows * vocabulary * factors.itemsize // GATHERED_BYTES))
    gathered = max(1, -(-rows // gathers))
    if not chunk_size:
        chunk_size = _whole_tiles(-(-gathered // -(-gathered // most))) if cuda else most
    return chunk_size, min(rows, -(-gathered // chunk_size) * chunk_size)


def _whole_tiles(rows: int) -> int:
    return rows if rows < 128 else -(-rows // 128) * 128


def _forward(
    hidden: Tensor,
    kernels: RowKernels,
    gradients: "_Gradients",
    targets: Tensor,
    target_idx: Tensor,
    sequence: Tensor | None,
    objective: Objective,
    control: Any,
    terms: _Terms,
    head: Head,
    chunk_size: int,
) -> tuple[Tensor, TokenOutputs]:
    """The loop over chunks: the loss and the statistics; the gradients are left in `gradients`."""
    spans = [
        slice(start, min(start + chunk_size, len(targets)))
        for start in range(0, len(targets), chunk_size)
    ]
    top = "top_entropy" in getattr(objective, "needs", ())

    def rows_at(span: slice) -> tuple[TokenStatistics, Sums]:
        sums, top_entropy = kernels.sums(
            hidden[target_idx[span]].to(head.weight.dtype), targets[span], top
        )
        return rows_of(sums, top_entropy, None if sequence is None else sequence[span]), sums

    whole = None
    if getattr(objective, "whole_batch", False) and spans:
        whole = _call(
            objective,
            TokenStatistics(*map(_cat, zip(*(rows_at(span)[0] for span in spans), strict=True))),
            control,
        )

    dtype = _accumulator(hidden.dtype)
    statistics, waiting, z_total = [], [], hidden.new_zeros((), dtype=dtype)
    for span in spans:
        rows, sums = rows_at(span)
        if whole is not None:
            loss, s = whole[0][span], whole[1][span]
        else:
            loss, s = _call(
                objective,
                rows,
                None if control is None else type(control)(*(x[span] for x in control)),
            )
        statistics.append(TokenOutputs(*rows[:6], loss, s))
        lse = sums.target - rows.logp if terms.z_loss else None
        if lse is not None:
            z_total += lse.square().sum()
        if not any(gradients.wanted):
            continue
        # dz_i = (s + r) p_i - s delta_iy, where r is the part of z_loss: p - 1 is never formed, and nothing is rounded to bf16 yet
        inner = terms.scale * head.logit_scale
        sm, q = (
            s * rows.one_minus_p,
            rows.one_minus_p / sums.total,
        )  # q: of the likeliest other token
        at_others, at_target = inner * s * q, -inner * sm
        idle = sm.abs() <= terms.eps if terms.skip else None  # a NaN is not
        if lse is not None:
            r = 2 * terms.z_loss * lse
            at_others, at_target = (
                at_others + inner * r * q,
                at_target + inner * r * rows.logp.exp(),
            )
            idle = None if idle is None else idle & (r == 0)
        active = None
        if idle is not None:
            active = idle.logical_not().nonzero().squeeze(1)
            active = None if len(active) == len(s) else active
        index = target_idx[span] if active is None else target_idx[span][active]
        if waiting and sum(map(len, waiting)) + len(index) > kernels.capacity:
            gradients.add(kernels.take(), torch.cat(waiting), only=False)
            waiting.clear()
        kernels.gradient(targets[span], sums.highest, at_others, at_target, active)
        waiting += [index] if len(index) else []
        last = span is spans[-1]
        if waiting and (last or sum(map(len, waiting)) >= kernels.capacity):
            gradients.add(kernels.take(), torch.cat(waiting), only=last)
            waiting.clear()

    empty = [
        hidden.new_empty(0, dtype=torch.bool if name == "top1" else dtype)
        for name in TokenOutputs._fields
    ]
    result = TokenOutputs(*map(_cat, zip(empty, *statistics, strict=True)))
    return terms.scale * (result.loss.sum() + terms.z_loss * z_total), result


class _Gradients:
    """d hidden, d weight and d bias, as far as they are wanted, summed over chunks in a fixed order."""

    def __init__(self, hidden: Tensor, head: Head, wanted: list[bool], dtype: torch.dtype):
        """dtype: of the weight's sum. A bf16 sum loses small contributions: 1e-3 of it over two additions, 7e-3 over 32."""
        self.hidden, self.head, self.wanted, self.dtype = hidden, head, wanted, dtype
        self.d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.d_weight: Tensor | None = None  # until the first rows
        self.d_bias = (
            torch.zeros_like(head.weight[:, 0], dtype=_accumulator(dtype)) if wanted[2] else None
        )

    def add(self, dz: Tensor, idx: Tensor, only: bool) -> None:
        """Add the products of dz [k,V], gradients of the logits of rows idx [k] of hidden. only: no others come."""
        if self.d_bias is not None:
            self.d_bias += dz.sum(0, dtype=self.d_bias.dtype)
        if self.d_hidden is not None:
            self.d_hidden.index_copy_(
                0, idx, torch.mm(dz, self.head.weight).to(self.d_hidden.dtype)
            )
        if self.wanted[1]:
            x = self.hidden[idx].to(dz.dtype)
            if (
                self.d_weight is None
            ):  # if these are all rows, one product is the sum, and is rounded once
                out = torch.empty_like(self.head.weight, dtype=dz.dtype if only else self.dtype)
                self.d_weight = product(dz.t(), x, out)
            elif dz.dtype == self.dtype:
                torch.addmm(self.d_weight, dz.t(), x, out=self.d_weight)
            else:
                torch.addmm(self.d_weight, dz.t(), x, out_dtype=self.dtype, out=self.d_weight)

    def results(self) -> list[Tensor | None]:
        if self.wanted[1] and self.d_weight is None:
            self.d_weight = torch.zeros_like(self.head.weight)
        return [self.d_hidden, self.d_weight, self.d_bias]


@contextmanager
def _unrounded_reductions() -> Iterator[None]:
    """Where a product is cut along its inner dimension, its parts are added in fp32, whatever the caller's setting."""
    settings = torch.backends.cuda.matmul
    before = (
        settings.allow_bf16_reduced_precision_reduction,
        settings.allow_bf16_reduced_precision_reduction_split_k,
    )
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cat(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts)


def _call(objective: Objective, rows: TokenStatistics, control: Any) -> tuple[Tensor, Tensor]:
    loss, s = objective(rows, control)
    for name, value in (("loss", loss), ("s", s)):
        if value.shape != rows.logp.shape:
            raise ValueError(
                f"the objective returned {name} of shape {tuple(value.shape)}: one value per row is needed, [{len(rows.logp)}]"
            )
    return loss.detach().to(rows.logp.dtype), s.detach().to(rows.logp.dtype)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    source: Tensor | None,
    sequence: Tensor | None,
    target_idx: Tensor | None,
    bias: Tensor | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [N,D] and weight [V,D]; found {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or hidden.dtype not in (
        torch.float32,
        torch.bfloat16,
        torch.float64,
    ):
        raise ValueError(
            f"hidden and weight must both be fp32, bf16 or fp64; found {hidden.dtype} and {weight.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"bias must be [{len(weight)}] of {weight.dtype}, like weight; found {tuple(bias.shape)} of {bias.dtype}"
        )
    rows, owner = (hidden, "hidden") if target_idx is None else (target_idx, "target_idx")
    for name, value in (("targets", targets), ("source", source), ("sequence", sequence)):
        if value is not None and value.shape != rows.shape[:1]:
            raise ValueError(
                f"{name} must have one entry per row of {owner}, [{len(rows)}]; found {tuple(value.shape)}"
            )
