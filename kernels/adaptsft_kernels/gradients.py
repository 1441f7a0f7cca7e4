"""The gradients of the head's inputs: summed over chunks in the forward pass, and what makes them
those of the loss in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptsft_kernels.row_kernels import Head, RowKernels, accumulator, product


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
        self.waiting: list[Tensor] = []  # which rows of hidden the kernels' dz belong to

    def make_room(self, rows: int) -> None:
        """Before the kernels append dz of so many rows."""
        if self.waiting and sum(map(len, self.waiting)) + rows > self.kernels.capacity:
            self._add(only=False)

    def appended(self, idx: Tensor, last: bool) -> None:
        """The kernels have appended dz of rows idx [k] of hidden. last: no others come."""
        if len(idx):
            self.waiting.append(idx)
        if self.waiting and (last or sum(map(len, self.waiting)) >= self.kernels.capacity):
            self._add(only=last)

    def _add(self, only: bool) -> None:
        """Add the products of what waits. only: nothing comes after it."""
        dz, idx = self.kernels.take(), torch.cat(self.waiting)
        self.waiting.clear()
        if self.d_bias is not None:
            self.d_bias += dz.sum(0, dtype=self.d_bias.dtype)
        if self.d_hidden is not None:
            d_rows = torch.mm(dz, self.head.weight).to(self.d_hidden.dtype)
            self.d_hidden.index_copy_(0, idx, d_rows)
        if not self.wanted[1]:
            return
        x = self.hidden[idx].to(dz.dtype)
        if self.d_weight is None:
            # if these are all rows, one product is the sum, and is rounded once
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


class LossWithGradients(torch.autograd.Function):
    """A loss whose gradients are known already: the backward pass only scales them."""

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
        scaled: list[Tensor | None] = []
        for grad in ctx.saved_tensors:
            if grad is None:
                scaled.append(None)
                continue
            # not in place: a second backward through the same graph needs the saved tensors as they
            # are. A sum in fp32 is rounded here, in the pass that reads it anyway
            out = torch.empty_like(grad, dtype=ctx.dtype)
            scaled.append(torch.mul(grad, grad_outputs[0], out=out))
        return None, *scaled, None, None, None


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
