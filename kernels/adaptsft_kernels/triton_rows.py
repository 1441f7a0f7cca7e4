"""The row kernels in Triton: one pass that reads a row of logits, sums it and writes its factor of
the gradient; and, where rows are to be left out, a second one that writes it for the others.

A buffer holds the logits of one chunk of rows, in fp32 or bf16; a second one gathers G, in the
factors' dtype, of the rows of several chunks that take part in the gradient products, so that these
run on thousands of rows. Every program writes places of its own and reads none that another writes:
no atomics, and any order of programs gives the same bits.

The offset of the exponentials is known before the pass: the target's logit or the highest of the
first block, whichever is higher. bf16 has the exponents of fp32, so that G need not be at most 1;
only a row whose highest logit lies FAR above is written again, with that as its offset.

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

from adaptsft_kernels.row_kernels import LOWEST, Head, product, row_stride
from adaptsft_kernels.token_statistics import SMALLEST, Sums
from adaptsft_kernels.torch_rows import finish, on_request

# a product and the sum it goes into are one instruction; Triton's own default differs by version
ROW = {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True}
GRADIENT = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": True}
LOW = tl.constexpr(LOWEST)
FLOOR = tl.constexpr(SMALLEST)
LOG2_E = tl.constexpr(1.4426950408889634)
# nats between the offset and the highest logit: the sum of squares stays below e^60 V, in fp32
FAR = tl.constexpr(30.0)


class TritonRows:
    """fp32 and bf16 factors; accumulators are fp32. Two buffers: logits of `rows` rows, and G of
    `capacity` rows, which may be given as `packed` [capacity, row_stride(V)]."""

    def __init__(
        self,
        head: Head,
        logits_dtype: torch.dtype,
        rows: int,
        capacity: int,
        packed: Tensor | None = None,
    ):
        # the kernels read a bias, and targets, as numbers side by side
        self.head = head._replace(bias=None if head.bias is None else head.bias.contiguous())
        self.v = len(head.weight)
        self.stride = row_stride(self.v)
        beyond = max(ROW["BLOCK"], GRADIENT["BLOCK"])
        self.logits = head.weight.new_empty(rows * self.stride + beyond, dtype=logits_dtype)
        self.packed = head.weight.new_empty(capacity, self.stride) if packed is None else packed
        self.capacity = capacity
        self.filled = 0

    def sums(
        self, x: Tensor, y: Tensor, wanted: Sequence[str], append: bool
    ) -> tuple[Sums, dict[str, Tensor]]:
        n = len(x)
        z = self.logits[: n * self.stride].view(n, self.stride)[:, : self.v]
        product(x, self.head.weight.t(), z)
        requested = {}
        if wanted:  # by torch, on an fp32 copy of the chunk: few objectives ask
            copy = z.to(torch.float32, copy=True)
            finish(copy, self.head)
            requested = on_request(copy, y, wanted)
        return self.launch_row_pass(y, append), requested

    def launch_row_pass(self, y: Tensor, append: bool) -> Sums:
        """Over the logits that the buffer holds."""
        n = len(y)
        out = torch.empty(len(Sums._fields), n, dtype=torch.float32, device=y.device)
        with torch.cuda.device_of(y):
            row_pass[(n,)](
                *self._logits(),
                y.contiguous(),
                out,
                n,
                self._room(n) if append else None,
                **self._head(),
                **ROW,
            )
        return Sums(*out)

    def append(self, y: Tensor, sums: Sums, active: Tensor | None) -> None:
        n = len(y) if active is None else len(active)
        room = self._room(n)
        if n == 0:
            return
        grid = (n, triton.cdiv(self.stride, GRADIENT["BLOCK"]))
        of_rows = y.contiguous(), sums.offset, sums.total, active
        with torch.cuda.device_of(y):
            row_gradient[grid](*self._logits(), *of_rows, room, **self._head(), **GRADIENT)

    def take(self) -> Tensor:
        filled, self.filled = self.filled, 0
        return self.packed[:filled, : self.v]

    def _room(self, n: int) -> Tensor:
        self.filled += n
        return self.packed[self.filled - n : self.filled]

    def _logits(self) -> tuple[Tensor, Tensor | None, int, int]:
        return self.logits, self.head.bias, self.v, self.stride

    def _head(self) -> dict[str, float]:
        return {"LOGIT_SCALE": float(self.head.logit_scale), "CAP": float(self.head.softcap or 0.0)}


# a count or an address that is a multiple of 16 in one step and not in the next would compile the
# kernel again, in the middle of a training
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["targets", "out"])
def row_pass(
    logits, bias, V, stride, targets, out, n, g,
    LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of one row into out [6,n], and its G, zero beyond V, into a row of g, unless that is
    None."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int32)
    z_row = logits + row * stride
    g_row = g
    if g is not None:
        g_row = g + row * stride
    columns = tl.arange(0, BLOCK)
    first_block, _ = _logit(z_row, bias, columns, V, LOGIT_SCALE, CAP)
    z_target, slope = _at(z_row, bias, target, V, LOGIT_SCALE, CAP)
    offset = tl.maximum(z_target, tl.max(tl.where(columns < V, first_block, LOW), 0))
    top, total, moment, square = _sums(
        z_row, bias, V, stride, target, offset, g_row, LOGIT_SCALE, CAP, BLOCK
    )
    if top - offset > FAR:
        offset = top
        top, total, moment, square = _sums(
            z_row, bias, V, stride, target, offset, g_row, LOGIT_SCALE, CAP, BLOCK
        )
    total = tl.where(total < FLOOR, FLOOR, total)  # where: a NaN stays one
    if g is not None:
        tl.debug_barrier()  # the block of the target has been written by other threads
        tl.store(g_row + target, (-total * slope).to(g.dtype.element_ty))
    tl.store(out + row, z_target)
    tl.store(out + n + row, offset)
    tl.store(out + 2 * n + row, top)
    tl.store(out + 3 * n + row, total)
    tl.store(out + 4 * n + row, moment)
    tl.store(out + 5 * n + row, square)


@triton.jit
def _sums(
    z_row, bias, V, stride, target, offset, g_row,
    LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(highest, total, moment, square) of all columns but the target's. A lane runs over 8
    neighbouring columns at a time, 16 bytes of bf16, and the lanes are merged at the end: no
    exchange between threads within the loop."""
    WIDE: tl.constexpr = 8
    lanes: tl.constexpr = BLOCK // WIDE
    highest = tl.full((lanes,), LOW, tl.float32)
    total = tl.zeros((lanes,), tl.float32)
    moment = tl.zeros((lanes,), tl.float32)
    square = tl.zeros((lanes,), tl.float32)
    offsets = tl.arange(0, lanes)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    for first in range(0, V, BLOCK):
        columns = first + offsets
        z, slope = _logit(z_row, bias, columns, V, LOGIT_SCALE, CAP)
        if (first + BLOCK > V) | ((target >= first) & (target < first + BLOCK)):
            z = tl.where((columns < V) & (columns != target), z, LOW)
            if CAP != 0.0:  # that of what lies beyond V may be NaN
                slope = tl.where(columns < V, slope, 0.0)
        rise = z - offset
        e = tl.exp2(rise * LOG2_E)
        highest = tl.maximum(highest, tl.max(z, 1))
        total += tl.sum(e, 1)
        moment += tl.sum(e * rise, 1)
        square += tl.sum(e * e, 1)
        if g_row is not None:
            tl.store(g_row + columns, (e * slope).to(g_row.dtype.element_ty), mask=columns < stride)
    return tl.max(highest, 0), tl.sum(total, 0), tl.sum(moment, 0), tl.sum(square, 0)


@triton.jit(do_not_specialize_on_alignment=["targets", "offset", "total", "active"])
def row_gradient(
    logits, bias, V, stride, targets, offset, total, active, g,
    LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of G of row active[i] (None: row i) into row i of g; zero beyond V."""
    place = tl.program_id(0).to(tl.int64)
    row = place
    if active is not None:
        row = tl.load(active + place)
    target = tl.load(targets + row).to(tl.int32)
    first = tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    z, slope = _logit(logits + row * stride, bias, columns, V, LOGIT_SCALE, CAP)
    value = tl.exp2((z - tl.load(offset + row)) * LOG2_E)
    # the target may be far above the offset: what is replaced may be infinite
    if (target >= first) & (target < first + BLOCK):
        value = tl.where(columns == target, -tl.load(total + row), value)
    value = value * slope
    if first + BLOCK > V:
        value = tl.where(columns < V, value, 0.0)
    tl.store(g + place * stride + columns, value.to(g.dtype.element_ty), mask=columns < stride)


@triton.jit
def _at(z_row, bias, column, V, LOGIT_SCALE: tl.constexpr, CAP: tl.constexpr):
    """The logit in one column, and the derivative of the soft cap there, both scalars."""
    z, slope = _logit(z_row, bias, column + tl.zeros((1,), tl.int32), V, LOGIT_SCALE, CAP)
    return tl.sum(z, 0), tl.sum(slope + tl.zeros((1,), tl.float32), 0)


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
        t = tl.exp2(tl.abs(z) * (-2.0 * LOG2_E / CAP))
        r = 1.0 / (1.0 + t)
        z = tl.where(z < 0, -CAP, CAP) * ((1.0 - t) * r)  # CAP tanh(z / CAP)
        slope = 4.0 * t * (r * r)  # 1 - tanh^2, accurate where tanh is near 1
    return z, slope
