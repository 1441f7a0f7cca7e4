"""The row kernels in Triton: one reading pass for the five sums, one reading and writing pass for
dz, which it packs.

A buffer holds the logits of one chunk of rows, in fp32 or bf16; a second one gathers dz, in the
factors' dtype, of the active rows of several chunks, so that the gradient products run on thousands
of rows however few of a chunk are active. Every program writes places of its own and reads none
that another writes: no atomics, and any order of programs gives the same bits.

Rows of both buffers begin at multiples of 64 elements, so that loads and stores are 16 bytes wide
whatever V is. The last block of a row reads on into the next one (the buffer has room behind the
last) instead of masking its loads: what does not belong to the row is replaced after loading, in
that block and in the target's, and no other block pays for a mask. Row offsets are int64 (rows x V
passes 2^31), and rows are on grid axis 0 (the others end at 65535).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaptsft_kernels.row_kernels import LOWEST, Head, product
from adaptsft_kernels.token_statistics import Sums
from adaptsft_kernels.torch_rows import finish, on_request

ALIGN = 64  # elements
SUMS = {"BLOCK": 2048, "num_warps": 8}
GRADIENT = {"BLOCK": 4096, "num_warps": 8}
ANY_ADDRESS = ["targets", "highest", "at_others", "at_target", "active"]
LOW = tl.constexpr(LOWEST)
LOG2_E = tl.constexpr(1.4426950408889634)


class TritonRows:
    """fp32 and bf16 factors; accumulators are fp32. Two buffers: logits of `rows` rows, and dz of
    `capacity` rows."""

    def __init__(self, head: Head, logits_dtype: torch.dtype, rows: int, capacity: int):
        self.head = head
        self.v = len(head.weight)
        self.stride = triton.cdiv(self.v, ALIGN) * ALIGN
        beyond = max(SUMS["BLOCK"], GRADIENT["BLOCK"])
        self.logits = head.weight.new_empty(rows * self.stride + beyond, dtype=logits_dtype)
        self.packed = head.weight.new_empty(capacity, self.stride)
        self.capacity = capacity
        self.filled = 0

    def sums(self, x: Tensor, y: Tensor, wanted: Sequence[str]) -> tuple[Sums, dict[str, Tensor]]:
        n = len(x)
        z = self.logits[: n * self.stride].view(n, self.stride)[:, : self.v]
        product(x, self.head.weight.t(), z)
        requested = {}
        if wanted:  # by torch, on an fp32 copy of the chunk: few objectives ask
            copy = z.to(torch.float32, copy=True)
            finish(copy, self.head)
            requested = on_request(copy, y, wanted)
        return self.launch_sums(y), requested

    def launch_sums(self, y: Tensor) -> Sums:
        """Of the logits that the buffer holds."""
        n, settings = len(y), sums_settings(self.logits.dtype)
        out = torch.empty(len(Sums._fields), n, dtype=torch.float32, device=y.device)
        with torch.cuda.device_of(y):
            row_sums[(n,)](*self._logits(), y, out, n, **self._head(), **settings)
        return Sums(*out)

    def gradient(
        self,
        y: Tensor,
        highest: Tensor,
        at_others: Tensor,
        at_target: Tensor,
        active: Tensor | None,
    ) -> None:
        n = len(y) if active is None else len(active)
        out = self.packed[self.filled : self.filled + n]
        self.filled += n
        if n == 0:
            return
        grid = (n, triton.cdiv(self.stride, GRADIENT["BLOCK"]))
        coefficients = highest, at_others, at_target
        with torch.cuda.device_of(y):
            row_gradient[grid](
                *self._logits(), y, *coefficients, active, out, **self._head(), **GRADIENT
            )

    def take(self) -> Tensor:
        filled, self.filled = self.filled, 0
        return self.packed[:filled, : self.v]

    def _logits(self) -> tuple[Tensor, Tensor | None, int, int]:
        return self.logits, self.head.bias, self.v, self.stride

    def _head(self) -> dict[str, float]:
        return {"LOGIT_SCALE": float(self.head.logit_scale), "CAP": float(self.head.softcap or 0.0)}


def sums_settings(logits: torch.dtype) -> dict[str, int]:
    """A lane of `row_sums` takes the 16 bytes that a thread loads at a time."""
    return SUMS | {"WIDE": 16 // logits.itemsize}


# a count or an address that is a multiple of 16 in one step and not in the next would compile the
# kernel again, in the middle of a training
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["targets", "out"])
def row_sums(
    logits, bias, V, stride, targets, out, n,
    LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of one row into out [5,n]. A lane runs over WIDE neighbouring columns at a time with a
    maximum of its own, and the lanes are merged at the end: no exchange between threads within the
    loop, one exponential per logit and one per WIDE of them."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int32)
    z_row = logits + row * stride
    lanes: tl.constexpr = BLOCK // WIDE
    highest = tl.full((lanes,), LOW, tl.float32)
    total = tl.zeros((lanes,), tl.float32)
    moment = tl.zeros((lanes,), tl.float32)
    square = tl.zeros((lanes,), tl.float32)
    offsets = tl.arange(0, lanes)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    for first in range(0, V, BLOCK):
        columns = first + offsets
        z, _ = _logit(z_row, bias, columns, V, LOGIT_SCALE, CAP)
        if (first + BLOCK > V) | ((target >= first) & (target < first + BLOCK)):
            z = tl.where((columns < V) & (columns != target), z, LOW)
        new = tl.maximum(highest, tl.max(z, 1))
        # a lane that has seen LOW only counts it as 1 each time; its first true logit, or the
        # merge, multiplies that by 0
        fall = highest - new
        shrink = tl.exp2(fall * LOG2_E)
        rise = z - new[:, None]
        e = tl.exp2(rise * LOG2_E)
        moment = shrink * (moment + fall * total) + tl.sum(e * rise, 1)
        total = shrink * total + tl.sum(e, 1)
        square = shrink * shrink * square + tl.sum(e * e, 1)
        highest = new
    top = tl.max(highest, 0)
    fall = highest - top
    w = tl.exp2(fall * LOG2_E)
    column = target + tl.zeros((1,), tl.int32)
    z_target, _ = _logit(z_row, bias, column, V, LOGIT_SCALE, CAP)
    tl.store(out + row, tl.sum(z_target, 0))
    tl.store(out + n + row, top)
    tl.store(out + 2 * n + row, tl.sum(w * total, 0))
    tl.store(out + 3 * n + row, tl.sum(w * (moment + fall * total), 0))
    tl.store(out + 4 * n + row, tl.sum(w * w * square, 0))


@triton.jit(do_not_specialize_on_alignment=ANY_ADDRESS)
def row_gradient(
    logits, bias, V, stride, targets, highest, at_others, at_target, active, out,
    LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of dz of row active[i] (None: row i) into row i of out, rounded once, at the end;
    zero beyond V."""
    place = tl.program_id(0).to(tl.int64)
    row = place
    if active is not None:
        row = tl.load(active + place)
    target = tl.load(targets + row).to(tl.int32)
    first = tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    z, slope = _logit(logits + row * stride, bias, columns, V, LOGIT_SCALE, CAP)
    dz = tl.load(at_others + row) * tl.exp2((z - tl.load(highest + row)) * LOG2_E)
    # the target may be far above highest: what is replaced may be infinite
    if (target >= first) & (target < first + BLOCK):
        dz = tl.where(columns == target, tl.load(at_target + row), dz)
    dz = dz * slope
    if first + BLOCK > V:
        dz = tl.where(columns < V, dz, 0.0)
    tl.store(out + place * stride + columns, dz.to(out.dtype.element_ty), mask=columns < stride)


@triton.jit
def _logit(z_row, bias, columns, V, LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr):
    """The logits in these columns, fp32, and the derivative of the soft cap; anything beyond V."""
    z = tl.load(z_row + columns).to(tl.float32)
    if bias is not None:
        z = z + tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)
        z = tl.where(z < LOW, LOW, z)  # -inf rules a token out; where: a NaN stays one
    if LOGIT_SCALE != 1.0:
        z = z * LOGIT_SCALE
    slope = 1.0
    if CAP != 0.0:
        t = tl.exp(-2.0 * tl.abs(z / CAP))
        z = tl.where(z < 0, -CAP, CAP) * (1.0 - t) / (1.0 + t)  # CAP tanh(z / CAP)
        slope = 4.0 * t / ((1.0 + t) * (1.0 + t))  # 1 - tanh^2, accurate where tanh is near 1
    return z, slope
