"""What an implementation of the passes over a chunk's logits must offer, and shared parts."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adaptsft_kernels.token_statistics import Sums

ALIGN = 64  # elements
LOWEST = -1e30  # stands for -inf; finite, so that 0 * LOWEST is 0 and not NaN


class Head(NamedTuple):
    """The linear map to logits, z = cap tanh(logit_scale (x W^T + b) / cap)."""

    weight: Tensor  # [V,D]
    bias: Tensor | None  # [V]
    softcap: float | None
    logit_scale: float


class RowKernels(Protocol):
    """What a chunk's rows come down to, and their G: exp(z_i - offset), and minus the sum of these
    at the target, times the soft cap's slope. The gradient of the logits is G times one number per
    row, which holds all that depends on the objective."""

    # rows of G that may wait for `take`; 0: those of one chunk, to be taken before the next `sums`
    capacity: int

    def sums(
        self, x: Tensor, y: Tensor, wanted: Sequence[str], append: bool
    ) -> tuple[Sums, dict[str, Tensor]]:
        """Sums over the logits of x [n,D] with targets y [n], and the statistics `wanted`, of
        token_statistics.ON_REQUEST, each [n]. append: G of all these rows too, in the same pass."""
        ...

    def append(self, y: Tensor, sums: Sums, active: Tensor | None) -> None:
        """Append G of the rows `active` (None: all) of the last `sums`, which has appended none."""
        ...

    def take(self) -> Tensor:
        """All appended G, [k,V]; the next row appended is the first again."""
        ...


def row_stride(vocabulary: int) -> int:
    """Elements from one row of logits or of G to the next, so that every row is aligned."""
    return -(-vocabulary // ALIGN) * ALIGN


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into out. On CUDA, bf16 factors give an fp32 `out` the matrix unit's accumulator as it
    is, without rounding to bf16."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(a @ b)  # bf16 logits on a CPU, which multiplies in fp32


def factors(x: Tensor) -> Tensor:
    """What enters a product: x itself on CUDA; elsewhere in fp32 at least: there bf16 products
    cannot return fp32, and are slow on most CPUs."""
    return x.detach() if x.device.type == "cuda" else x.detach().to(accumulator(x.dtype))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """In which statistics and sums of factors in `dtype` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
