"""The Triton kernels in Triton's interpreter, on CPU tensors, against dense logits in fp64.

Run by test_triton.py, with interpreter_rows.py, or by hand:

    TRITON_INTERPRET=1 pytest --noconftest tests/kernels/interpreter_*.py
"""

from functools import cache
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from adaptsft_kernels import (
    TokenStatistics,
    choose_implementation,
    linear_logprobs,
    linear_objective,
    triton_rows,
)

BLOCK = 64  # several blocks, although V is small
TOLERANCE = 5e-6  # logits of 20 are rounded to 1e-6 by fp32


@cache
def builtins_of(package: Any) -> list[str]:
    return [name for name in dir(package) if tl.core.is_builtin(getattr(package, name))]


@pytest.fixture(autouse=True)
def quick_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter searches triton.language for its builtins whenever a kernel calls a function,
    for a third of the time of these cases. Here each module is searched once."""

    def patch_builtin(package: Any, *rest: Any) -> None:
        for name in builtins_of(package):
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, *rest)

    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        builtins_of(package)  # as they are before a launch patches them
    monkeypatch.setattr(interpreter, "_patch_builtin", patch_builtin)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(triton_rows.ROW, "BLOCK", BLOCK)
    monkeypatch.setitem(triton_rows.GRADIENT, "BLOCK", BLOCK)


@pytest.fixture(params=["ascending", "descending"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter runs programs one after another, a GPU in any order. Running them backwards,
    too, would show a race."""
    builder = interpreter.interpreter_builder
    forward = builder.set_grid_idx

    def backward(*place: int) -> None:
        forward(*(size - 1 - at for size, at in zip(builder.grid_dim, place, strict=True)))

    if request.param == "descending":
        monkeypatch.setattr(builder, "set_grid_idx", backward)
    return request.param


def head_of(
    n: int = 9, d: int = 8, v: int = 150, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, ...]:
    """hidden, weight, bias (leaves), and targets, whose p go from 1e-6 to above .99; every fourth
    row has none."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(v, d, generator=generator), torch.randn(v, generator=generator)
    targets = torch.randint(0, v, (n,), generator=generator)
    noise = 0.3 * torch.randn(n, d, generator=generator)
    hidden = torch.linspace(-0.3, 2.0, n)[:, None] * weight[targets] + noise
    targets[1::4] = -100
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets


def nll(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
    return -tokens.logp, torch.ones_like(tokens.logp)


def above(lower: float) -> Any:
    """-p where p >= lower, else nothing."""

    def objective(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
        p = tokens.logp.exp()
        weight = (p >= lower).to(p.dtype) * p
        return -weight, weight

    return objective


def dense(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    objective: Any,
    **head: Any,
) -> tuple[Tensor, ...]:
    """In fp64, with logits held whole: loss, d hidden, d weight, (d bias), and the statistics of
    every target token."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    z = head.get("logit_scale", 1.0) * torch.nn.functional.linear(*leaves)
    if head.get("softcap"):
        z = head["softcap"] * torch.tanh(z / head["softcap"])
    learned = targets != -100
    y = targets[learned]
    full = z.log_softmax(1)[learned]
    logp = full.gather(1, y[:, None]).squeeze(1)
    p = full.exp()
    # 1 - p as the sum of the others, not as a difference
    rest = p.scatter(1, y[:, None], 0.0).sum(1)
    entropy, top1 = -(p * full).sum(1), z[learned].argmax(1) == y
    found = (logp, rest, entropy, p.square().sum(1), top1, full.amax(1))
    tokens = TokenStatistics(*(x.detach() for x in found))
    loss, token_weight = objective(tokens, None)
    # the gradient is weight (p_i - delta_iy), that of -weight log p
    grads = torch.autograd.grad(-(token_weight * logp).sum(), leaves)
    return loss.sum(), *grads, *tokens[:6], loss, token_weight


def fused(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    objective: Any,
    **options: Any,
) -> tuple[Tensor, ...]:
    options |= {"bias": bias, "implementation": "triton"}
    loss, tokens = linear_objective(hidden, weight, targets, objective, **options)
    leaves = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    return loss.detach(), *torch.autograd.grad(loss, leaves), *tokens


def assert_close(found: tuple[Tensor, ...], true: tuple[Tensor, ...], tolerance: float) -> None:
    assert len(found) == len(true)
    for index, (a, b) in enumerate(zip(found, true, strict=True)):
        if a.dtype == torch.bool:
            assert torch.equal(a, b), index
        else:
            error = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
            assert error <= tolerance, (index, error)


HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True, "logit_scale": 0.7},
    {"softcap": 4.0},
    {"bias": True, "softcap": 5.0, "logit_scale": 1.3},
]


@pytest.mark.parametrize("skip", [False, True], ids=["one pass", "two"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_equals_fp64(head: dict, skip: bool, order: str) -> None:
    hidden, weight, bias, targets = head_of()
    options = {key: value for key, value in head.items() if key != "bias"}
    given = (hidden, weight, bias if "bias" in head else None, targets, above(0.02))
    true = dense(*given, **options)
    assert 0 < (true[-1] == 0).sum() < len(true[-1])  # some tokens have weight 0
    assert_close(fused(*given, chunk_size=4, skip_zeros=skip, **options), true, TOLERANCE)


@pytest.mark.parametrize("skip", [False, True], ids=["one pass", "two"])
@pytest.mark.parametrize("above_offset", [25.0, 35.0, 200.0])
def test_a_highest_logit_far_above_the_first_block(above_offset: float, skip: bool) -> None:
    """Beyond FAR, the row is written again; in fp32, exp(200) is infinite. Entropy and top_logp,
    differences of numbers of that size, are right to 1e-6 of them."""
    hidden, weight, _, targets = head_of(n=4)
    with torch.no_grad():
        hidden[:, 0], weight[:, 0], weight[BLOCK + 3, 0] = 1.0, 0.0, above_offset
        targets.copy_(torch.tensor([5, BLOCK + 3, 149, BLOCK + 4]))
    given = hidden, weight, None, targets, above(0.0)
    found, true = list(fused(*given, skip_zeros=skip)), list(dense(*given))
    for difference in (8, 5):
        assert (found.pop(difference) - true.pop(difference)).abs().max() < 1e-6 * above_offset
    assert_close(tuple(found), tuple(true), 4 * TOLERANCE)


@pytest.mark.parametrize("v", [1, 2, 127, 129, 192])
def test_any_vocabulary(v: int) -> None:
    hidden, weight, _, targets = head_of(n=3, v=v)
    true = dense(hidden, weight, None, targets, nll)
    assert_close(fused(hidden, weight, None, targets, nll), true, TOLERANCE)


def test_one_row() -> None:
    hidden, weight, _, targets = head_of(n=1)
    call = hidden, weight, None, targets, nll
    assert_close(fused(*call), dense(*call), TOLERANCE)


def test_dense_equals_sparse_and_chunks_change_nothing() -> None:
    hidden, weight, _, targets = head_of(n=14)
    given = (hidden, weight, None, targets, above(0.5))
    sparse = fused(*given, chunk_size=3)
    assert_close(fused(*given, chunk_size=3, skip_zeros=False), sparse, TOLERANCE)
    assert_close(fused(*given, chunk_size=1), sparse, TOLERANCE)
    assert_close(fused(*given, chunk_size=100), sparse, TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip(fused(*given, chunk_size=3), sparse, strict=True))


def test_p_at_both_ends() -> None:
    """Logits that are held exactly: 1 - p down to 1e-12, where fp32 1 - p is zero, and p down to
    1e-13."""
    gap = torch.arange(-30.0, 29.0, 2.0)
    weight = torch.tensor([0.0, 1.0, 0.0])[:, None]
    hidden, targets = gap[:, None].clone().requires_grad_(), torch.ones(len(gap), dtype=torch.long)
    _, grad, logp, rest, *_ = fused(hidden, weight, None, targets, nll)
    u = 2 / gap.double().exp()  # the others over the target
    assert rest.min() < 2e-12 and logp.min() < -30
    for value, true in ((logp, -u.log1p()), (rest, u / (1 + u)), (grad.squeeze(1), -u / (1 + u))):
        assert ((value - true).abs() <= 2e-6 * true.abs()).all()


def test_bf16_factors_and_bf16_logits() -> None:
    hidden, weight, _, targets = head_of(n=12, dtype=torch.bfloat16)
    true = dense(hidden, weight, None, targets, nll)
    found = fused(hidden, weight, None, targets, nll, chunk_size=3)
    assert all(grad.dtype == torch.bfloat16 for grad in found[1:3])
    assert_close(found, true, 3e-3)  # one rounding to bf16
    # fp32 logits: p within 1e-5
    torch.testing.assert_close(found[3].double(), true[3], rtol=1e-5, atol=1e-6)
    options = {"chunk_size": 3, "logits_dtype": torch.bfloat16}
    rounded = fused(hidden, weight, None, targets, nll, **options)
    by_torch, _ = linear_objective(hidden, weight, targets, nll, **options)
    torch.testing.assert_close(rounded[0], by_torch)
    assert rounded[0] != found[0]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_log_probs_equal_fp64(head: dict) -> None:
    hidden, weight, bias, targets = head_of()
    options = {key: value for key, value in head.items() if key != "bias"}
    given = (hidden, weight, bias if "bias" in head else None, targets)
    found = linear_logprobs(
        hidden, weight, targets, given[2], chunk_size=4, implementation="triton", **options
    )
    leaves = [x for x in given[:3] if x is not None]
    grads = torch.autograd.grad(-found[0].sum(), leaves)
    _, *true = dense(*given, nll, **options)
    wanted = (true[len(leaves)], true[len(leaves) + 2], *true[: len(leaves)])
    assert not any(x[targets == -100].any() for x in found)
    learned = (x[targets != -100] for x in found)
    assert_close((*learned, *grads), wanted, TOLERANCE)


def test_a_bias_and_targets_that_are_columns() -> None:
    """With other numbers between theirs."""
    hidden, weight, bias, targets = head_of(n=4)
    y = targets.clamp(min=0)
    apart = [torch.stack([x.detach(), x.detach() + 1], 1)[:, 0] for x in (bias, y)]
    options = {"implementation": "triton", "target_idx": torch.arange(4)}
    for skip in (False, True):
        found, true = (
            linear_objective(hidden, weight, t, nll, bias=b, skip_zeros=skip, **options)[0]
            for b, t in (apart, (bias.detach(), y))
        )
        grads = [torch.autograd.grad(loss, (hidden, weight)) for loss in (found, true)]
        assert torch.equal(found, true)
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_frozen_inputs_and_two_backwards() -> None:
    hidden, weight, _, targets = head_of(n=4)
    frozen_hidden, frozen_weight = hidden.detach(), weight.detach()
    both = fused(hidden, weight, None, targets, nll)
    assert torch.equal(fused(hidden, frozen_weight, None, targets, nll)[1], both[1])
    assert torch.equal(fused(frozen_hidden, weight, None, targets, nll)[1], both[2])
    loss, _ = linear_objective(hidden, weight, targets, nll, implementation="triton")
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (hidden, weight))
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second, strict=True))
    call = frozen_hidden, frozen_weight, targets, nll
    assert not linear_objective(*call, implementation="triton")[0].requires_grad


def test_nothing_to_learn() -> None:
    hidden, weight, bias, targets = head_of(n=4)
    for y, objective in ((torch.full_like(targets, -100), nll), (targets, above(2.0))):
        loss, *grads = fused(hidden, weight, bias, y, objective, chunk_size=2)[:4]
        assert not loss.any() and not any(grad.any() for grad in grads)


def test_minus_infinity_and_nan() -> None:
    hidden, weight, bias, targets = head_of(n=3, v=70)
    ruled_out = torch.where(torch.arange(70) < 60, bias.detach(), -torch.inf)
    y = targets.clamp(0, 59)
    true = fused(hidden, weight.detach()[:60], bias.detach()[:60], y, nll)
    assert_close(fused(hidden, weight.detach(), ruled_out, y, nll), true, TOLERANCE)
    poisoned = hidden.detach().clone()
    poisoned[2, 0] = torch.nan
    call = poisoned.requires_grad_(), weight.detach(), None, y, above(0.1)
    loss, grad, logp, *_ = fused(*call, skip_zeros=True)
    assert loss.isnan() and logp.isnan().tolist() == [False, False, True] and grad[2].isnan().any()


def test_fp64_is_refused() -> None:
    assert choose_implementation("auto", torch.device("cuda"), torch.float64) == "torch"
    with pytest.raises(ValueError, match=r"implementation=triton needs fp32 or bf16 factors"):
        choose_implementation("triton", torch.device("cuda"), torch.float64)
