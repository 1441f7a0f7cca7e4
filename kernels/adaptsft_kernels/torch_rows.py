"""The row kernels in plain torch, for any device and dtype. The buffer of logits becomes
exp(z - highest), and then G, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptsft_kernels.row_kernels import LOWEST, Head, product
from adaptsft_kernels.token_statistics import TOP_K, Sums

# On a CPU, the first call of such a function in a process may compute a thread's share to 1e-4
# only, if it comes from several threads (pytorch#188792: MKL finds its kernels on the first call).
# One element takes one thread; later calls are right on any number.
_EXPONENTIAL = (torch.exp, torch.log, torch.expm1, torch.log1p, torch.tanh)
for _dtype in (torch.float32, torch.float64):
    for _first in (*_EXPONENTIAL, torch.sin, torch.cos, torch.sqrt, torch.erf):
        _first(torch.ones(1, dtype=_dtype))


class TorchRows:
    """Two [n,V] buffers in `dtype` exist at a time; three with a soft cap."""

    capacity = 0

    def __init__(self, head: Head, dtype: torch.dtype, logits_dtype: torch.dtype):
        self.head, self.dtype, self.logits_dtype = head, dtype, logits_dtype
        self.empty = head.weight.new_empty(0)
        self.others = self.packed = self.empty  # [n,V] between calls
        self.slope: Tensor | None = None

    def sums(
        self, x: Tensor, y: Tensor, wanted: Sequence[str], append: bool
    ) -> tuple[Sums, dict[str, Tensor]]:
        # free the last chunk's buffers first: chunks are there to bound memory
        self.others, self.packed, self.slope = self.empty, self.empty, None
        z = x.new_empty(len(x), len(self.head.weight), dtype=self.logits_dtype)
        z = product(x, self.head.weight.t(), z).to(self.dtype)
        self.slope = finish(z, self.head)
        requested = on_request(z, y, wanted)
        column = y.unsqueeze(1)
        target = z.gather(1, column).squeeze(1)
        z.scatter_(1, column, LOWEST)
        highest = z.amax(1)
        self.others = z.sub_(highest.unsqueeze(1)).exp()
        square = torch.linalg.vector_norm(self.others, dim=1).square()
        total, moment = self.others.sum(1), z.mul_(self.others).sum(1)
        sums = Sums(target, highest, highest, total, moment, square)
        if append:
            self.append(y, sums, None)
        return sums, requested

    def append(self, y: Tensor, sums: Sums, active: Tensor | None) -> None:
        g, total, slope = self.others, sums.total, self.slope
        if active is not None:
            g, y, total = g[active], y[active], total[active]
            slope = None if slope is None else slope[active]
        g.scatter_(1, y.unsqueeze(1), -total.unsqueeze(1))
        if slope is not None:
            g.mul_(slope)
        self.packed = g.to(self.head.weight.dtype)

    def take(self) -> Tensor:
        return self.packed


def finish(z: Tensor, head: Head) -> Tensor | None:
    """x W^T [n,V] becomes the logits, in place. Returns the derivative of the soft cap, [n,V]."""
    slope = None
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
    return slope


def on_request(z: Tensor, y: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The statistics `wanted`, of token_statistics.ON_REQUEST, each [n], of logits z [n,V] and
    targets y [n]. They take buffers [n,V] of their own."""
    known = {"top_entropy": lambda: entropy_of_top(z), "mass": lambda: mass_up_to(z, y)}
    return {name: known[name]() for name in wanted}


def mass_up_to(z: Tensor, y: Tensor) -> Tensor:
    """Probability [n] of all tokens that are at most as likely as y [n], ties included."""
    likelier = z > z.gather(1, y.unsqueeze(1))
    return (z.masked_fill(likelier, LOWEST).logsumexp(1) - z.logsumexp(1)).exp().clamp(max=1.0)


def entropy_of_top(z: Tensor) -> Tensor:
    """Entropy [n] of the TOP_K likeliest tokens of logits z [n,V], renormalised, nats."""
    top = z.topk(min(TOP_K, z.shape[1]), dim=1).values.log_softmax(1)
    return -(top.exp() * top).sum(1)
