"""The chunked loss of the head against dense references, and what it promises: cost, memory, precision, determinism."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenOutputs, TokenStatistics, dropped_share, linear_objective
from adaptsft_kernels.linear_objective import rows_held
from tests.conftest import REPO

N, D, V = 23, 16, 101


def nll(rows: TokenStatistics, control: Any) -> tuple[Tensor, Tensor]:
    return -rows.logp, torch.ones_like(rows.logp)


def random_head(
    n: int = N, d: int = D, v: int = V, dtype: torch.dtype = torch.float32, valid: float = 0.7
) -> tuple[Tensor, ...]:
    """hidden, weight, bias (leaves) and targets; about 30 % of the rows ignored; targets of every likelihood."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(v, d, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, v, (n,), generator=generator)
    pull = torch.rand(n, 1, dtype=torch.float64, generator=generator)
    hidden = pull * weight[targets] + 0.5 * torch.randn(
        n, d, dtype=torch.float64, generator=generator
    )
    targets[torch.rand(n, generator=generator) >= valid] = -100
    bias = torch.randn(v, dtype=torch.float64, generator=generator)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets


def control_of(sources: int = 1, /, **values: float) -> ObjectiveState:
    values = {
        "alpha": 0.0,
        "lower": 0.0,
        "upper": 1.0,
        "mean_p": 0.5,
        "sequence_nll": 1.0,
        "mass": 1.0,
        "exempt": 0.0,
    } | values
    return ObjectiveState(**{name: torch.full((sources,), value) for name, value in values.items()})


def logits_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    z = logit_scale * F.linear(hidden, weight, bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def dense(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    f: Callable[[Tensor], Tensor],
    z_loss: float = 0.0,
    **head: Any,
) -> Tensor:
    """The sum of f(log p) over valid rows with logits held whole and differentiated by autograd."""
    z, valid = logits_of(hidden, weight, **head), targets != -100
    logp = z.log_softmax(1)[valid].gather(1, targets[valid, None]).squeeze(1)
    return f(logp).sum() + z_loss * z.logsumexp(1)[valid].square().sum()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


FUNCTIONS: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor]]] = {
    "nll": ({}, lambda logp: -logp),
    "neg_p": ({}, lambda logp: -logp.exp()),
    "alpha": ({"alpha": 0.5}, lambda logp: (1 - (0.5 * logp).exp()) / 0.5),
    "threshold": (
        {"lower": 0.2},
        lambda logp: torch.where(logp >= torch.tensor(0.2).log(), -logp, 0.0),
    ),
    "focal": ({}, lambda logp: -((1 - logp.exp()) ** 2) * logp),
    "log1mp": ({}, lambda logp: (1 - logp.exp()).log()),
}
HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"softcap": 4.0},
    {"logit_scale": 0.3},
    {"z_loss": 0.05},
    {"bias": True, "softcap": 3.0, "logit_scale": 1.7, "z_loss": 0.02},
]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_dense_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    control, f = FUNCTIONS[name]
    objective = build_objective(ObjectiveConfig(name=name))
    hidden, weight, _, targets = random_head(n=60, dtype=dtype)
    loss, _ = linear_objective(
        hidden, weight, targets, objective, control_of(**control), chunk_size=7
    )
    grads = torch.autograd.grad(loss, (hidden, weight))
    # the reference is in fp64 on the same numbers, so that the tolerance is spent on one side only
    hidden64, weight64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    true_loss = dense(hidden64, weight64, targets, f)
    true_grads = torch.autograd.grad(true_loss, (hidden64, weight64))
    assert loss.dtype == dtype
    assert (loss - true_loss).abs() <= tolerance * true_loss.abs()
    for grad, true in zip(grads, true_grads, strict=True):
        assert grad.dtype == dtype and relative(grad, true) < tolerance


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_bias_softcap_scale_and_z_loss(head: dict) -> None:
    hidden, weight, bias, targets = random_head(dtype=torch.float64)
    head = head | {"bias": bias} if "bias" in head else head
    loss, statistics = linear_objective(
        hidden, weight, targets, nll, scale=0.1, chunk_size=5, **head
    )
    true = 0.1 * dense(hidden, weight, targets, lambda logp: -logp, **head)
    leaves = (hidden, weight, bias) if "bias" in head else (hidden, weight)
    torch.testing.assert_close(loss, true)
    for grad, true_grad in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(true, leaves), strict=True
    ):
        torch.testing.assert_close(grad, true_grad)
    torch.testing.assert_close(
        statistics.loss.sum(),
        dense(hidden, weight, targets, lambda logp: -logp, **head | {"z_loss": 0.0}).detach(),
    )


@pytest.mark.parametrize("name", ["nll", "alpha", "focal", "huber", "poly1"])
def test_gradcheck(name: str) -> None:
    hidden, weight, bias, targets = random_head(n=7, d=3, v=11, dtype=torch.float64)
    control = control_of(alpha=0.7)
    options: dict[str, Any] = {
        "softcap": 5.0,
        "z_loss": 0.1,
        "scale": torch.tensor(0.3),
        "chunk_size": 3,
    }
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_objective(x, w, targets, REGISTRY[name], control, bias=b, **options)[
            0
        ],
        (hidden, weight, bias),
    )


def test_statistics_of_every_valid_row() -> None:
    hidden, weight, _, targets = random_head(n=200, dtype=torch.float32)
    needs = build_objective(ObjectiveConfig(name="eaft"))
    _, statistics = linear_objective(hidden, weight, targets, needs, chunk_size=32)
    z, valid = (
        logits_of(hidden.double(), weight.double())[targets != -100].detach(),
        targets[targets != -100],
    )
    logp = z.log_softmax(1)
    target = logp.gather(1, valid[:, None]).squeeze(1)
    top = z.topk(20).values.log_softmax(1)
    true = {
        "logp": target,
        "one_minus_p": -torch.expm1(target),
        "entropy": -(logp.exp() * logp).sum(1),
        "collision": logp.exp().square().sum(1),
        "top_logp": logp.amax(1),
        "weight": -(top.exp() * top).sum(1) / 3,
    }
    for name, value in true.items():
        torch.testing.assert_close(
            getattr(statistics, name), value.float(), rtol=5e-6, atol=1e-6, msg=name
        )
    assert torch.equal(statistics.top1, z.argmax(1) == valid)
    assert 0.2 < statistics.top1.float().mean() < 0.98
    assert not any(x.requires_grad for x in statistics)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_p_is_accurate_at_both_ends(dtype: torch.dtype, tolerance: float) -> None:
    """Logits that are held exactly, so that all error is that of the statistics; 1-p down to 1e-13, where fp32 1 - p is 0."""
    gap = torch.arange(-60, 31, dtype=dtype)
    weight = torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=dtype)[:, None]  # logits 0, gap, 0, -2 gap
    hidden = gap[:, None].requires_grad_()
    loss, statistics = linear_objective(hidden, weight, torch.ones(len(gap), dtype=torch.long), nll)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert statistics.one_minus_p.min() < 1e-12
    with mp.workdps(50):
        for i, g in enumerate(gap.tolist()):
            others = 2 + mp.exp(-2 * g)
            m = others / (others + mp.exp(g))
            true_grad = -2 * m * mp.exp(-2 * g) / others - m  # sum_i p_i W_i - W_y
            for value, true in (
                (statistics.one_minus_p[i], m),
                (statistics.logp[i], -mp.log1p(others * mp.exp(-g))),
                (grad[i, 0], true_grad),
            ):
                assert abs(value.item() - true) <= tolerance * abs(true), (g, value, true)


def test_bf16_keeps_its_precision_where_p_is_near_one() -> None:
    hidden, weight, _, targets = random_head(n=64, d=32, dtype=torch.bfloat16, valid=1.0)
    with torch.no_grad():
        hidden.mul_(torch.linspace(0.3, 1.5, 64)[:, None])
    loss, statistics = linear_objective(
        hidden, weight, targets, nll, chunk_size=2
    )  # 32 sums, which bf16 would lose in
    grads = torch.autograd.grad(loss, (hidden, weight))
    hidden64, weight64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    true = torch.autograd.grad(
        dense(hidden64, weight64, targets, lambda logp: -logp), (hidden64, weight64)
    )
    near_one = statistics.one_minus_p < 0.01
    assert near_one.sum() > 10
    assert all(grad.dtype == torch.bfloat16 for grad in grads)
    assert (
        relative(grads[0], true[0]) < 3e-3 and relative(grads[1], true[1]) < 3e-3
    )  # one rounding to bf16
    assert relative(grads[0][near_one], true[0][near_one]) < 3e-3


def test_chunks_change_nothing_and_runs_are_bitwise_equal() -> None:
    hidden, weight, _, targets = random_head(n=50)
    results = []
    for chunk_size in (0, 1, 7, 50, 7):
        loss, statistics = linear_objective(
            hidden, weight, targets, REGISTRY["focal"], chunk_size=chunk_size
        )
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight)), *statistics))
    for result in results[1:4]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[4], strict=True))


def flops(call: Callable[[], tuple[Tensor, TokenOutputs]]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()[0].backward()
    return counter.get_total_flops()


def test_only_valid_rows_cost_and_only_active_rows_cost_gradients() -> None:
    hidden, weight, _, targets = random_head(n=40)
    valid = int((targets != -100).sum())
    assert valid < 35
    product = 2 * D * V
    assert (
        flops(lambda: linear_objective(hidden, weight, targets, nll, chunk_size=8))
        == 3 * valid * product
    )
    (grad,) = torch.autograd.grad(linear_objective(hidden, weight, targets, nll)[0], hidden)
    assert not grad[targets == -100].any() and grad[targets != -100].ne(0).all()

    objective, control = (
        build_objective(ObjectiveConfig(name="threshold", lower=0.2)),
        control_of(lower=0.2),
    )
    active = int(
        (linear_objective(hidden, weight, targets, objective, control)[1].weight != 0).sum()
    )
    assert 0 < active < valid
    assert (
        flops(lambda: linear_objective(hidden, weight, targets, objective, control, chunk_size=8))
        == (valid + 2 * active) * product
    )
    assert (
        flops(lambda: linear_objective(hidden, weight.detach(), targets, nll))
        == 2 * valid * product
    )
    assert (
        flops(lambda: linear_objective(hidden.detach(), weight, targets, nll))
        == 2 * valid * product
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = linear_objective(hidden, weight, targets, nll)
    assert counter.get_total_flops() == valid * product and not loss.requires_grad


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["nll", "eaft", "threshold"])
def test_logits_are_never_held_whole(name: str) -> None:
    hidden, weight, _, targets = random_head(n=300, d=8, v=1000)
    with Largest() as largest:
        linear_objective(
            hidden,
            weight,
            targets,
            build_objective(ObjectiveConfig(name=name)),
            control_of(),
            softcap=30.0,
            chunk_size=16,
        )[0].backward()
    assert largest.elements == 16 * 1000


def test_default_chunk_is_48_mib_of_logits() -> None:
    hidden, weight, _, targets = random_head(n=20, d=2, v=1 << 21)  # 8 MiB of logits a row
    with torch.no_grad(), Largest() as largest:
        linear_objective(hidden, weight, targets.clamp(min=0), nll)
    assert largest.elements == (48 << 20) // 4


@pytest.mark.parametrize(
    ("rows", "vocabulary", "logits", "held"),
    [
        (
            16384,
            128256,
            torch.bfloat16,
            (4096, 8192),
        ),  # two sums of the weight's gradient, in chunks of whole tiles
        (16384, 152064, torch.float32, (2048, 8192)),
        (8192, 151936, torch.bfloat16, (4096, 8192)),  # one: rounded once
        (5000, 128256, torch.bfloat16, (5120, 5000)),
        (65536, 262144, torch.bfloat16, (2560, 5120)),
        (7, 100, torch.float32, (7, 7)),
        (0, 100, torch.float32, (1, 0)),
    ],
)
def test_rows_held_on_cuda(
    rows: int, vocabulary: int, logits: torch.dtype, held: tuple[int, int]
) -> None:
    assert rows_held(rows, vocabulary, torch.bfloat16, logits, "cuda") == held


def test_no_valid_row_gives_a_connected_zero() -> None:
    hidden, weight, bias, targets = random_head()
    for objective in (nll, build_objective(ObjectiveConfig(name="cayley", params={"batch": 1}))):
        loss, statistics = linear_objective(
            hidden,
            weight,
            torch.full_like(targets, -100),
            objective,
            control_of(),
            bias=bias,
            z_loss=0.1,
        )
        grads = torch.autograd.grad(loss, (hidden, weight, bias))
        assert not loss.any() and all(not grad.any() for grad in grads)
        assert all(len(value) == 0 for value in statistics) and statistics.top1.dtype == torch.bool


def test_weight_zero_everywhere() -> None:
    hidden, weight, _, targets = random_head()
    objective = build_objective(ObjectiveConfig(name="threshold", lower=1.0))
    loss, statistics = linear_objective(
        hidden, weight, targets, objective, control_of(lower=1.0), chunk_size=4
    )
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert not loss.any() and not any(grad.any() for grad in grads)
    assert statistics.logp.isfinite().all() and (statistics.logp < 0).all()


@pytest.mark.parametrize(("n", "v"), [(1, 129), (5, 127), (3, 2), (4, 1)])
def test_odd_sizes(n: int, v: int) -> None:
    hidden, weight, _, targets = random_head(n=n, v=v, valid=1.0, dtype=torch.float64)
    loss, statistics = linear_objective(
        hidden, weight, targets, build_objective(ObjectiveConfig(name="eaft")), chunk_size=2
    )
    assert all(value.isfinite().all() for value in statistics)
    nll_loss, _ = linear_objective(hidden, weight, targets, nll)
    true = dense(hidden, weight, targets, lambda logp: -logp)
    torch.testing.assert_close(nll_loss, true)
    for grad, true_grad in zip(
        torch.autograd.grad(nll_loss, (hidden, weight)),
        torch.autograd.grad(true, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(grad, true_grad)
    if v == 1:
        assert not loss.any() and statistics.top1.all() and not statistics.entropy.any()


def test_a_bias_of_minus_infinity_rules_tokens_out() -> None:
    hidden, weight, _, targets = random_head(v=50, valid=1.0)
    bias = torch.zeros(60)
    bias[50:] = -torch.inf
    padded = torch.cat([weight.detach(), torch.zeros(10, D)]).requires_grad_()
    needs = build_objective(ObjectiveConfig(name="eaft"))
    loss, statistics = linear_objective(hidden, padded, targets, needs, bias=bias)
    true, true_statistics = linear_objective(hidden, weight, targets, needs)
    torch.testing.assert_close(loss, true)
    for value, true_value in zip(statistics, true_statistics, strict=True):
        torch.testing.assert_close(value, true_value)
    grad, true_grad = torch.autograd.grad(loss, padded)[0], torch.autograd.grad(true, weight)[0]
    torch.testing.assert_close(grad, torch.cat([true_grad, torch.zeros(10, D)]))


def test_frozen_inputs_and_two_backwards_and_upstream() -> None:
    hidden, weight, _, targets = random_head()
    loss, _ = linear_objective(hidden, weight, targets, nll)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(loss, (hidden, weight))
    for a, b, c in zip(first, second, third, strict=True):
        torch.testing.assert_close(b, 3 * a)
        assert torch.equal(a, c)
    assert torch.equal(
        torch.autograd.grad(linear_objective(hidden, weight.detach(), targets, nll)[0], hidden)[0],
        first[0],
    )
    assert torch.equal(
        torch.autograd.grad(linear_objective(hidden.detach(), weight, targets, nll)[0], weight)[0],
        first[1],
    )
    assert not linear_objective(hidden.detach(), weight.detach(), targets, nll)[0].requires_grad


def test_z_loss_reaches_the_rows_that_the_objective_masks() -> None:
    hidden, weight, _, targets = random_head()
    masked, control = (
        build_objective(ObjectiveConfig(name="threshold", lower=1.0)),
        control_of(lower=1.0),
    )
    loss, _ = linear_objective(hidden, weight, targets, masked, control, z_loss=0.1, chunk_size=4)
    true = dense(hidden, weight, targets, torch.zeros_like, z_loss=0.1)
    torch.testing.assert_close(loss, true)
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(true, weight)[0]
    )


def test_valid_idx_is_the_same_as_labels_with_gaps() -> None:
    hidden, weight, _, targets = random_head()
    source = torch.arange(N) % 2
    control = control_of(2)._replace(alpha=torch.tensor([0.0, 2.0]))
    target_idx = (targets != -100).nonzero().squeeze(1)
    alpha, only = REGISTRY["alpha"], target_idx
    gaps = linear_objective(hidden, weight, targets, alpha, control, source=source, chunk_size=5)
    packed = linear_objective(
        hidden,
        weight,
        targets[only],
        alpha,
        control,
        source=source[only],
        target_idx=only,
        chunk_size=5,
    )
    assert torch.equal(gaps[0], packed[0])
    assert all(torch.equal(a, b) for a, b in zip(gaps[1], packed[1], strict=True))
    p = gaps[1].logp.exp()
    torch.testing.assert_close(
        gaps[1].weight, torch.where(source[target_idx] == 0, torch.ones_like(p), p**2)
    )


def test_alpha_changed_in_place_between_calls() -> None:
    hidden, weight, _, targets = random_head()
    control = control_of(alpha=0.0)
    at_zero, _ = linear_objective(hidden, weight, targets, REGISTRY["alpha"], control)
    control.alpha.fill_(1.0)
    at_one, statistics = linear_objective(hidden, weight, targets, REGISTRY["alpha"], control)
    at_zero_grad, at_one_grad = (torch.autograd.grad(loss, weight)[0] for loss in (at_zero, at_one))
    torch.testing.assert_close(at_one, statistics.one_minus_p.sum())
    torch.testing.assert_close(
        at_zero_grad,
        torch.autograd.grad(linear_objective(hidden, weight, targets, nll)[0], weight)[0],
    )
    torch.testing.assert_close(
        at_one_grad,
        torch.autograd.grad(
            linear_objective(hidden, weight, targets, REGISTRY["neg_p"])[0], weight
        )[0],
    )


def test_whole_batch_objective_sees_all_rows_at_once() -> None:
    hidden, weight, _, targets = random_head()
    sequence = torch.arange(N) // 6
    talr = build_objective(ObjectiveConfig(name="talr", params={"batch": 1}))
    small, large = (
        linear_objective(
            hidden, weight, targets, talr, control_of(), sequence=sequence, chunk_size=chunk_size
        )
        for chunk_size in (3, 1000)
    )
    torch.testing.assert_close(small[0], large[0])
    nll_of_rows, of_sequence = -large[1].logp, sequence[targets != -100]
    tau = torch.stack([nll_of_rows[of_sequence == i].mean() for i in of_sequence.unique()]).median()
    torch.testing.assert_close(large[1].weight, (-nll_of_rows / tau).exp().clamp(min=0.01))
    for a, b in zip(
        torch.autograd.grad(small[0], (hidden, weight)),
        torch.autograd.grad(large[0], (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_any_function_and_any_control_will_do() -> None:
    """The door for users outside adaptsft: a function of Rows, and a NamedTuple of their own."""

    class Mine(NamedTuple):
        temperature: Tensor

    def smooth(rows: TokenStatistics, control: Mine) -> tuple[Tensor, Tensor]:
        assert rows.top_entropy is None and rows.sequence is None  # neither was asked for
        w = torch.sigmoid(rows.logp / control.temperature)
        return -w * rows.logp, w

    hidden, weight, _, targets = random_head(dtype=torch.float64)
    loss, statistics = linear_objective(hidden, weight, targets, smooth, Mine(torch.tensor([2.0])))
    z, valid = logits_of(hidden, weight), targets != -100
    logp = z.log_softmax(1)[valid].gather(1, targets[valid, None]).squeeze(1)
    true = -(torch.sigmoid(logp.detach() / 2.0) * logp).sum()
    torch.testing.assert_close(loss, true)
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(true, weight)[0]
    )
    torch.testing.assert_close(statistics.weight, torch.sigmoid(logp.detach() / 2.0))


def test_autocast_does_not_round_the_logits() -> None:
    hidden, weight, _, targets = random_head()
    plain, _ = linear_objective(hidden, weight, targets, nll)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = linear_objective(hidden, weight, targets, nll)
    assert torch.equal(plain, under)


def test_a_non_finite_input_shows_in_the_loss_and_gradient() -> None:
    hidden, weight, _, targets = random_head(valid=1.0)
    with torch.no_grad():
        hidden[3, 0] = torch.nan
    loss, statistics = linear_objective(hidden, weight, targets, REGISTRY["neg_p"])
    assert loss.isnan() and torch.autograd.grad(loss, weight)[0].isnan().any()
    assert statistics.logp.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": torch.zeros(N, D + 1)}, r"hidden must be \[N,D\]"),
        ({"hidden": torch.zeros(1, N, D)}, r"hidden must be \[N,D\]"),
        ({"hidden": torch.zeros(N, D, dtype=torch.bfloat16)}, r"both be fp32.*bfloat16"),
        (
            {"targets": torch.zeros(N - 1, dtype=torch.long)},
            rf"targets must have one entry per row of hidden, \[{N}\]",
        ),
        ({"targets": torch.full((N,), V)}, rf"targets must be in \[0, {V}\)"),
        (
            {"source": torch.zeros(N + 2, dtype=torch.long)},
            "source must have one entry per row of hidden",
        ),
        (
            {"target_idx": torch.arange(4)},
            r"targets must have one entry per row of target_idx, \[4\]",
        ),
        ({"bias": torch.zeros(V + 1)}, rf"bias must be \[{V}\]"),
        ({"logits_dtype": torch.bfloat16}, "logits_dtype=torch.bfloat16 must be torch.float32"),
        ({"eps": -1.0}, "eps=-1.0 must not be negative"),
        (
            {"objective": lambda rows, control: (rows.logp.sum(), rows.logp)},
            "objective returned loss of shape",
        ),
        (
            {"objective": lambda rows, control: (rows.logp, rows.logp[:1])},
            "objective returned s of shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str) -> None:
    hidden, weight, _, targets = random_head()
    arguments: dict[str, Any] = {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "objective": nll,
    }
    with pytest.raises(ValueError, match=words):
        linear_objective(**arguments | change)


def test_rows_of_weight_zero_may_be_kept_in_the_products() -> None:
    hidden, weight, _, targets = random_head(n=40)
    objective, control = (
        build_objective(ObjectiveConfig(name="threshold", lower=0.2)),
        control_of(lower=0.2),
    )
    results = []
    for skip in (True, False):
        loss, _ = linear_objective(
            hidden, weight, targets, objective, control, chunk_size=8, skip_zeros=skip
        )
        results.append(torch.autograd.grad(loss, (hidden, weight)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    valid = int((targets != -100).sum())
    call = partial(
        linear_objective,
        hidden,
        weight,
        targets,
        objective,
        control,
        chunk_size=8,
        skip_zeros=False,
    )
    assert flops(call) == 3 * valid * 2 * D * V


def test_eps_drops_rows_and_says_how_much() -> None:
    hidden, weight, _, targets = random_head(n=60, valid=1.0)
    exact, _ = linear_objective(hidden, weight, targets, nll)
    loss, statistics = linear_objective(hidden, weight, targets, nll, eps=0.1)
    assert torch.equal(exact, loss)
    difference = torch.autograd.grad(loss, hidden)[0] - torch.autograd.grad(exact, hidden)[0]
    small = statistics.one_minus_p <= 0.1
    assert torch.equal(difference.abs().sum(1) > 0, small) and 0 < small.sum() < 60
    share = float(statistics.one_minus_p[small].sum() / statistics.one_minus_p.sum())
    assert float(dropped_share(statistics, 0.1)) == pytest.approx(share, rel=1e-6)
    assert float(dropped_share(statistics, 0.0)) == 0.0


def test_bf16_logits_round_p() -> None:
    hidden, weight, _, targets = random_head(n=64, d=32, dtype=torch.bfloat16, valid=1.0)
    true = (
        logits_of(hidden.double(), weight.double())
        .log_softmax(1)
        .gather(1, targets[:, None])
        .squeeze(1)
    )
    _, exact = linear_objective(hidden, weight, targets, nll)
    _, rounded = linear_objective(hidden, weight, targets, nll, logits_dtype=torch.bfloat16)
    assert (exact.logp.exp() / true.exp() - 1).abs().max() < 1e-5
    assert 1e-3 < (rounded.logp.exp() / true.exp() - 1).abs().max() < 0.3


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_cpu_and_waits_for_the_device_only_to_skip_rows(
    dtype: torch.dtype, implementation: str
) -> None:
    hidden, weight, bias, targets = random_head(
        n=200, d=64, v=1001, dtype=dtype
    )  # an odd vocabulary
    target_idx = (targets != -100).nonzero().squeeze(1)
    objective = build_objective(
        ObjectiveConfig(name="threshold", base="talr", lower=0.05, params={"batch": 1})
    )
    arguments: dict[str, Any] = {
        "targets": targets[target_idx],
        "target_idx": target_idx,
        "source": target_idx % 2,
        "sequence": target_idx // 30,
    }

    def on(device: str, **options: Any) -> list[Tensor]:
        leaves = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight, bias)]
        control = ObjectiveState(*(field.to(device) for field in control_of(2, lower=0.05)))
        moved: dict[str, Any] = {name: value.to(device) for name, value in arguments.items()}
        x, w, b = leaves
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss, statistics = linear_objective(
                    x,
                    w,
                    objective=objective,
                    control=control,
                    chunk_size=64,
                    z_loss=0.01,
                    softcap=20.0,
                    bias=b,
                    **moved,
                    **options,
                )
                grads = torch.autograd.grad(loss, leaves)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        nonlocal waits
        waits = sum("synchroniz" in str(warning.message) for warning in caught)
        return [tensor.cpu() for tensor in (loss.detach(), *grads, *statistics)]

    waits = 0
    true = on("cpu")
    chunks = -(-len(target_idx) // 64)
    for skip in (False, True):
        found = on("cuda", implementation=implementation, skip_zeros=skip)
        assert waits == (chunks if skip else 0)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                found, on("cuda", implementation=implementation, skip_zeros=skip), strict=True
            )
        )
        for value, expected in zip(found, true, strict=True):
            if value.dtype == torch.bool:
                assert torch.equal(value, expected)
            else:
                assert relative(value, expected) < (1e-5 if value.dtype == torch.float32 else 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("implementation", "logits", "tolerance"),
    [
        ("triton", None, 2.5e-3),
        ("torch", None, 2.5e-3),
        ("triton", torch.bfloat16, 1.5e-2),
        ("torch", torch.bfloat16, 1.5e-2),
    ],
)
def test_cuda_against_fp64_with_several_sums(
    implementation: str,
    logits: torch.dtype | None,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dz is gathered, multiplied and summed several times: in fp32, or where the logits are bf16 and the sums few, in bf16."""
    monkeypatch.setattr(
        import_module("adaptsft_kernels.linear_objective"), "GATHERED_BYTES", 700 * 4099 * 2
    )
    hidden, weight, _, targets = (
        x.cuda() for x in random_head(n=3000, d=128, v=4099, dtype=torch.bfloat16)
    )
    # logits of a dozen, as models have: fp32 rounds larger ones by more than 1e-5
    hidden, weight = (0.1 * hidden.detach()).requires_grad_(), weight.detach().requires_grad_()
    target_idx = (targets != -100).nonzero().squeeze(1)
    loss, rows = linear_objective(
        hidden, weight, targets[target_idx], REGISTRY["neg_p"], target_idx=target_idx, chunk_size=128,
        implementation=implementation, logits_dtype=logits,
    )  # fmt: skip
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    true = dense(*leaves, targets, lambda logp: -logp.exp())
    assert relative(loss.detach(), true.detach()) < (1e-5 if logits is None else 1e-3)
    for grad, expected in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(true, leaves), strict=True
    ):
        assert relative(grad, expected) < tolerance
    if logits is not None:
        return
    z = (leaves[0].detach() @ leaves[1].detach().t())[target_idx]
    p = z.softmax(1).gather(1, targets[target_idx, None]).squeeze(1)
    assert ((rows.logp.exp() - p) / p).abs().max() < 1e-5


def test_readme_examples_run(
    capsys: pytest.CaptureFixture[str], tiny_model: Callable[..., Path]
) -> None:
    text = (REPO / "kernels" / "adaptsft_kernels" / "README.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(first, scope)
    assert capsys.readouterr().out.startswith("NLL ")
    assert (
        scope["hidden"].grad[16:].any()
        and not scope["hidden"].grad[:16].any()
        and scope["head"].weight.grad.any()
    )

    exec(second, scope)
    scope["focus"] = nll
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama", tied=False))
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": torch.where(torch.arange(12) < 4, -100, ids)}
    for count in (None, torch.tensor(16)):
        torch.testing.assert_close(
            scope["compute_loss"](None, model, batch, num_items_in_batch=count), model(**batch).loss
        )


def test_kernels_import_without_adaptsft() -> None:
    code = "import sys, adaptsft_kernels; sys.exit(any(name.split('.')[0] in ('adaptsft', 'transformers') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "kernels", check=True)
