"""The gradients of the head's inputs: summed over chunks in the forward pass, and what makes them
those of the loss in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptsft_kernels.row_kernels import Head, RowKernels, accumulator, product
from adaptsft_kernels.token_statistics import Sums


def coefficients(
    sums: Sums, one_minus_p: Tensor, dtype: torch.dtype, softcap: float | None
) -> Tensor:
    """What G of each row, in `dtype`, is multiplied by to be softmax - onehot, [n].

    With others that sum to `total`, it is (1 - p) / total. bf16 cannot hold every total at the
    target, where most of a row's gradient is; the coefficient makes up for its rounding there as
    far as that does not cost more at the others (least squares). On heads of random numbers this
    takes the error of d weight from 2.8e-3 to 2.3e-3, that of d hidden from 2.4e-3 to 1.7e-3.
    """
    q = one_minus_p / sums.total
    if dtype != torch.bfloat16:
        return q
    at_target = sums.total
    if softcap:  # times its slope there, as in G; never 0
        at_target = at_target * (1 - (sums.target / softcap).square()).clamp(min=1e-6)
    held = at_target.to(dtype).to(q.dtype)
    off, others = at_target / held, sums.square / held / held
    return q * (off + others) / (1.0 + others)


def d_hidden(g: Tensor, a: Tensor, head: Head) -> Tensor:
    """Rows of the gradient of hidden, [k,D], of G [k,V] and the factors a [k] of its rows, in the
    dtype of a: scaled before they are rounded."""
    out = torch.empty(len(g), head.weight.shape[1], dtype=a.dtype, device=g.device)
    return product(g, head.weight, out).mul_(a.unsqueeze(1))


def scaled_rows(x: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
    """a x [k,D]: the factors of the rows are put there, where they are fewest."""
    return torch.mul(x, a.unsqueeze(1), out=x.new_empty(x.shape, dtype=dtype))


def d_bias(g: Tensor, a: Tensor) -> Tensor:
    """sum_k a_k G_k [V], in the dtype of a."""
    if g.dtype == a.dtype:
        return a @ g
    # three bf16 numbers hold an fp32 one
    parts, left = [], a
    for _ in range(3):
        parts.append(left.to(g.dtype))
        left = left - parts[-1]
    out = torch.empty(3, g.shape[1], dtype=a.dtype, device=g.device)
    return product(torch.stack(parts), g, out).sum(0)


class GradientSums:
    """d hidden, d weight and d bias, as far as they are wanted, summed in a fixed order."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        kernels: RowKernels,
        wanted: list[bool],
        dtype: torch.dtype,
    ):
        """dtype: of the weight's sum. A bf16 sum loses small contributions: 1e-3 of it over two
        additions, 7e-3 over 32."""
        self.hidden, self.head, self.kernels, self.wanted = hidden, head, kernels, wanted
        self.dtype = dtype
        self.d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.d_weight: Tensor | None = None  # until the first rows
        self.d_bias: Tensor | None = None
        if wanted[2]:
            self.d_bias = torch.zeros_like(head.weight[:, 0], dtype=accumulator(dtype))
        # of the rows whose G wait in the kernels: their places in hidden, and their factors
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def make_room(self, rows: int) -> None:
        """Before the kernels append G of so many rows."""
        if self.waiting and self._count() + rows > self.kernels.capacity:
            self._add(only=False)

    def appended(self, idx: Tensor, a: Tensor, last: bool) -> None:
        """The kernels have appended G of rows idx [k] of hidden, whose gradients of logits are a G,
        a [k]. last: no others come."""
        if len(idx):
            self.waiting.append((idx, a))
        if self.waiting and (last or self._count() >= self.kernels.capacity):
            self._add(only=last)

    def _count(self) -> int:
        return sum(len(idx) for idx, _ in self.waiting)

    def _add(self, only: bool) -> None:
        """Add the products of what waits. only: nothing comes after it."""
        g, (idx, a) = self.kernels.take(), map(torch.cat, zip(*self.waiting, strict=True))
        self.waiting.clear()
        if self.d_bias is not None:
            self.d_bias += d_bias(g, a)
        if self.d_hidden is not None:
            self.d_hidden.index_copy_(0, idx, d_hidden(g, a, self.head).to(self.d_hidden.dtype))
        if not self.wanted[1]:
            return
        x = scaled_rows(self.hidden[idx], a, g.dtype)
        if self.d_weight is None:
            # if these are all rows, one product is the sum, and is rounded once
            out = torch.empty_like(self.head.weight, dtype=g.dtype if only else self.dtype)
            self.d_weight = product(g.t(), x, out)
        elif g.dtype == self.dtype:
            torch.addmm(self.d_weight, g.t(), x, out=self.d_weight)
        else:
            torch.addmm(self.d_weight, g.t(), x, out_dtype=self.dtype, out=self.d_weight)

    def results(self) -> list[Tensor | None]:
        if self.wanted[1] and self.d_weight is None:
            self.d_weight = torch.zeros_like(self.head.weight)
        return [self.d_hidden, self.d_weight, self.d_bias]


class LossWithGradients(torch.autograd.Function):
    """A loss whose gradients are known already: the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        unit_upstream: bool,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *grads: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*grads)
        ctx.dtype, ctx.unit_upstream = hidden.dtype, unit_upstream
        return loss.clone()

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (upstream,) = grad_outputs
        scaled: list[Tensor | None] = []
        if ctx.unit_upstream:
            is_one = "unit_upstream=True: backward must begin at the loss itself, with gradient 1"
            torch._assert_async(upstream == 1, is_one)
            scaled += [None if g is None else g.to(ctx.dtype) for g in ctx.saved_tensors]
        else:
            for grad in ctx.saved_tensors:
                if grad is None:
                    scaled.append(None)
                    continue
                # not in place: a second backward through the same graph needs the saved tensors as
                # they are. A sum in fp32 is rounded here, in the pass that reads it anyway
                out = torch.empty_like(grad, dtype=ctx.dtype)
                scaled.append(torch.mul(grad, upstream, out=out))
        return None, None, *scaled, None, None, None


@contextmanager
def unrounded_reductions() -> Iterator[None]:
    """Where a product is cut along its inner dimension, its parts are added in fp32, whatever the
    caller's setting."""
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
