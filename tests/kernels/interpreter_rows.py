"""The buffers of the Triton kernels in Triton's interpreter, run as interpreter_cases.py is."""

import pytest
import torch
from torch import Tensor

from adaptsft_kernels import chunks
from adaptsft_kernels.row_kernels import Head, row_stride
from adaptsft_kernels.token_statistics import ON_REQUEST
from adaptsft_kernels.torch_rows import TorchRows
from adaptsft_kernels.triton_rows import GRADIENT, ROW, TritonRows
from tests.kernels.interpreter_cases import (  # noqa: F401
    TOLERANCE,
    above,
    assert_close,
    dense,
    fused,
    head_of,
    order,
    quick_calls,
    small_blocks,
)


@pytest.mark.usefixtures("order")
def test_packing_in_any_order_is_a_gather() -> None:
    """Rows of several chunks, appended: the buffer holds, bit for bit, the dense rows in order, and
    nothing else."""
    hidden, weight, _, targets = head_of(n=12)
    targets = targets.clamp(min=0)
    head = Head(weight.detach(), None, None, 1.0)
    whole, packed = TritonRows(head, torch.float32, 12, 12), TritonRows(head, torch.float32, 6, 12)
    for buffer in (packed.packed, packed.logits, whole.packed, whole.logits):
        buffer.fill_(torch.nan)  # also the padding of the rows, which must not reach a sum
    sums, _ = whole.sums(hidden.detach(), targets, (), append=True)
    assert not whole.packed[:, whole.v :].any()
    rows = whole.take().clone()
    torch.testing.assert_close(rows.sum(1), torch.zeros(12), rtol=0, atol=2e-6 * rows.abs().max())
    kept = []
    for span, active in (
        (slice(0, 6), torch.tensor([1, 2, 5])),
        (slice(6, 12), torch.tensor([0, 4])),
    ):
        part, _ = packed.sums(hidden[span].detach(), targets[span], (), append=False)
        assert all(torch.equal(a, b[span]) for a, b in zip(part, sums, strict=True))
        packed.append(targets[span], part, active)
        kept += (active + span.start).tolist()
    assert torch.equal(packed.take(), rows[kept])
    assert packed.packed[len(kept) :].isnan().all()  # nothing is written beyond
    assert len(packed.take()) == 0


@pytest.mark.parametrize("skip", [False, True])
def test_g_of_more_rows_than_are_gathered_at_a_time(
    skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight's gradient is then a sum of products, of 6 rows here."""
    hidden, weight, bias, targets = head_of(n=20)
    monkeypatch.setattr(chunks, "GATHERED_BYTES", 5 * len(weight) * weight.itemsize)
    taken: list[int] = []

    def take(kernels: TritonRows) -> Tensor:
        taken.append(kernels.filled)
        return real(kernels)

    real = TritonRows.take
    monkeypatch.setattr(TritonRows, "take", take)
    given = hidden, weight, bias, targets, above(1e-3)
    found = fused(*given, chunk_size=3, skip_zeros=skip)
    assert_close(found, dense(*given), TOLERANCE)
    # with rows left out, the next chunk's do not fit into what remains of the 6
    assert taken[0] == (5 if skip else 6) and max(taken) <= 6 and len(taken) > 1
    assert sum(taken) == (found[-1].ne(0).sum() if skip else 15)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_g_is_zero_beyond_the_vocabulary(
    softcap: float | None, one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lay there; and where blocks end behind the row."""
    for settings in (ROW, GRADIENT):
        monkeypatch.setitem(settings, "BLOCK", 128)
    hidden, weight, _, targets = head_of(n=3)
    kernels = TritonRows(Head(weight.detach(), None, softcap, 1.0), torch.float32, 3, 3)
    for buffer in (kernels.logits, kernels.packed):
        buffer.fill_(torch.nan)
    y = targets.clamp(min=0)
    sums, _ = kernels.sums(hidden.detach(), y, (), append=one_pass)
    if not one_pass:
        kernels.append(y, sums, None)
    assert kernels.take().isfinite().all() and not kernels.packed[:, kernels.v :].any()
    assert kernels.stride == 192 and len(kernels.logits) >= 2 * 192 + 2 * 128  # all that is read


@pytest.mark.parametrize("one_pass", [True, False])
def test_g_in_bf16_is_rounded_once(one_pass: bool) -> None:
    """On a CPU products run in fp32; the kernel itself writes what a GPU's bf16 factors take. (The
    interpreter cuts; a GPU rounds.)"""
    hidden, weight, _, targets = head_of(n=4)
    targets = targets.clamp(min=0)
    result = []
    for dtype in (torch.float32, torch.bfloat16):
        packed = torch.empty(4, row_stride(len(weight)), dtype=dtype)
        kernels = TritonRows(Head(weight.detach(), None, None, 1.0), torch.float32, 4, 4, packed)
        sums, _ = kernels.sums(hidden.detach(), targets, (), append=one_pass)
        if not one_pass:
            kernels.append(targets, sums, None)
        result.append(kernels.take())
    assert result[1].dtype == torch.bfloat16
    torch.testing.assert_close(result[1].float(), result[0], rtol=2**-7, atol=0)


def test_statistics_on_request_are_those_of_torch() -> None:
    hidden, weight, bias, targets = head_of(n=3)
    head = Head(weight.detach(), bias.detach(), 5.0, 1.3)
    y = targets.clamp(min=0)
    call = hidden.detach(), y, ON_REQUEST, False
    _, true = TorchRows(head, torch.float32, torch.float32).sums(*call)
    _, found = TritonRows(head, torch.float32, 3, 3).sums(*call)
    assert found.keys() == set(ON_REQUEST)
    torch.testing.assert_close(found, true)
