"""The row kernels in Triton: one reading pass for the five sums, one reading and writing pass for dz, which it packs.

A buffer holds the logits of one chunk of rows, in fp32 or bf16; a second one gathers dz, in the factors' dtype, of the active rows
of several chunks, so that the gradient products run on thousands of rows however few of a chunk are active. Every program writes
places of its own and reads none that another writes: no atomics, and any order of programs gives the same bits.

Rows of both buffers begin at multiples of 64 elements and are loaded to such a multiple, whatever V is: a mask at an odd V would
turn 16-byte loads into scalar ones. Row offsets are int64 (rows x V passes 2^31), and rows are on grid axis 0 (the others end at 65535).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaptsft_kernels.rows import LOWEST, Head, Sums, product
from adaptsft_kernels.torch_rows import entropy_of_top, finish

PACKED_CHUNKS = 4  # dz of this many chunks is gathered: every addition to an fp32 weight gradient moves 8 V D bytes
ALIGN = 64  # elements
SUMS = {"BLOCK": 2048, "num_warps": 8}
GRADIENT = {"BLOCK": 4096, "num_warps": 8}
LOW = tl.constexpr(LOWEST)


class TritonRows:
    """fp32 and bf16 factors; accumulators are fp32. Two buffers: logits of `rows` rows, and dz of `capacity` rows."""

    def __init__(self, head: Head, logits_dtype: torch.dtype, rows: int, capacity: int):
        self.head = head
        self.v = len(head.weight)
        stride = triton.cdiv(self.v, ALIGN) * ALIGN
        self.logits = head.weight.new_empty(rows, stride, dtype=logits_dtype)
        self.packed = head.weight.new_empty(capacity, stride)
        self.capacity = capacity
        self.filled = 0

    def sums(self, x: Tensor, y: Tensor, top: bool) -> tuple[Sums, Tensor | None]:
        n = len(x)
        z = product(x, self.head.weight.t(), self.logits[:n, : self.v])
        top_entropy = None
        if top:  # by torch, on an fp32 copy of the chunk: only one objective asks for it
            copy = z.to(torch.float32, copy=True)
            finish(copy, self.head)
            top_entropy = entropy_of_top(copy)
        out = x.new_empty(len(Sums._fields), n, dtype=torch.float32)
        with torch.cuda.device_of(x):
            row_sums[(n,)](self.logits, *self._head(), y, out, n, **self._constants(), **SUMS)
        return Sums(*out), top_entropy

    def gradient(self, y: Tensor, highest: Tensor, at_others: Tensor, at_target: Tensor, active: Tensor | None) -> None:
        n = len(y) if active is None else len(active)
        out = self.packed[self.filled : self.filled + n]
        self.filled += n
        if n == 0:
            return
        grid = (n, triton.cdiv(self.packed.stride(0), GRADIENT["BLOCK"]))
        with torch.cuda.device_of(y):
            row_gradient[grid](
                self.logits, *self._head(), y, highest, at_others, at_target, y if active is None else active, out,
                ALL=active is None, **self._constants(), **GRADIENT,
            )  # fmt: skip

    def take(self) -> Tensor:
        filled, self.filled = self.filled, 0
        return self.packed[:filled, : self.v]

    def _head(self) -> tuple:
        bias = self.logits if self.head.bias is None else self.head.bias  # some pointer, which is not read
        return bias, self.v, self.logits.stride(0), self.head.logit_scale, self.head.softcap or 1.0

    def _constants(self) -> dict[str, bool]:
        return {"HAS_BIAS": self.head.bias is not None, "HAS_CAP": bool(self.head.softcap)}


@triton.jit(do_not_specialize=["n"])
def row_sums(
    logits, bias, V, stride, logit_scale, cap, labels, out, n,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of one row into out [5,n]. Every lane runs over its own columns with its own maximum, and the lanes are merged at the end:
    no reduction over the block within the loop, and one exponential per logit."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row).to(tl.int32)
    z_row = logits + row * stride
    highest = tl.full((BLOCK,), LOW, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        z, _ = _logit(z_row, bias, columns, V, stride, logit_scale, cap, HAS_BIAS, HAS_CAP)
        z = tl.where((columns < V) & (columns != label), z, LOW)
        rise = z - highest
        e = tl.exp(-tl.abs(rise))
        up = rise > 0  # z is the new maximum: what was summed so far shrinks by e, and z itself adds 1
        # a lane that has seen LOW only may count it as 1 each time; its first true logit, or the merge, multiplies that by 0
        moment = tl.where(up, e * (moment - rise * total), moment + e * rise)
        total = tl.where(up, total * e + 1.0, total + e)
        square = tl.where(up, square * e * e + 1.0, square + e * e)
        highest = tl.where(up, z, highest)
    top = tl.max(highest, 0)
    fall = highest - top
    w = tl.exp(fall)
    own = label + tl.zeros((1,), tl.int32)
    target, _ = _logit(z_row, bias, own, V, stride, logit_scale, cap, HAS_BIAS, HAS_CAP)
    tl.store(out + row, tl.sum(target, 0))
    tl.store(out + n + row, top)
    tl.store(out + 2 * n + row, tl.sum(w * total, 0))
    tl.store(out + 3 * n + row, tl.sum(w * (moment + fall * total), 0))
    tl.store(out + 4 * n + row, tl.sum(w * w * square, 0))


@triton.jit
def row_gradient(
    logits, bias, V, stride, logit_scale, cap, labels, highest, at_others, at_target, active, out,
    ALL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of dz of row active[i] (ALL: row i) into row i of out, rounded once, at the end; zero beyond V."""
    place = tl.program_id(0).to(tl.int64)
    row = place
    if not ALL:
        row = tl.load(active + place)
    label = tl.load(labels + row).to(tl.int32)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z, slope = _logit(logits + row * stride, bias, columns, V, stride, logit_scale, cap, HAS_BIAS, HAS_CAP)
    others = tl.load(at_others + row) * tl.exp(tl.minimum(z - tl.load(highest + row), 0.0))  # only the target may be above highest
    dz = tl.where(columns == label, tl.load(at_target + row), others)
    if HAS_CAP:
        dz = dz * slope
    dz = tl.where(columns < V, dz, 0.0)
    tl.store(out + place * stride + columns, dz.to(out.dtype.element_ty), mask=columns < stride)


@triton.jit
def _logit(z_row, bias, columns, V, stride, logit_scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """The logits in these columns, fp32, at least LOW, and the derivative of the soft cap; anything beyond V."""
    z = tl.load(z_row + columns, mask=columns < stride, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z = z + tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)
    z = z * logit_scale
    slope = 1.0
    if HAS_CAP:
        t = tl.exp(-2.0 * tl.abs(z / cap))
        z = tl.where(z < 0, -cap, cap) * (1.0 - t) / (1.0 + t)  # cap tanh(z / cap)
        slope = 4.0 * t / ((1.0 + t) * (1.0 + t))  # 1 - tanh^2, accurate where tanh is near 1
    return tl.where(z < LOW, LOW, z), slope  # where: a NaN stays one
