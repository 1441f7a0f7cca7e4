"""The fused loss against dense references: values, gradients, statistics, precision, and CUDA."""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import chunks, linear_cross_entropy, linear_logprobs, linear_objective
from tests.conftest import REPO
from tests.kernels.reference import D, dense, logits_of, nll, random_head, relative, state_of

# name of an objective -> fields of its state, and the function of log p that it is
FUNCTIONS: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor]]] = {
    "nll": ({}, lambda logp: -logp),
    "neg_p": ({}, lambda logp: -logp.exp()),
    "alpha": ({"alpha": 0.5}, lambda logp: (1 - (0.5 * logp).exp()) / 0.5),
    "threshold": ({"lower": 0.2}, lambda logp: torch.where(logp >= math.log(0.2), -logp, 0.0)),
    "focal": ({}, lambda logp: -((1 - logp.exp()) ** 2) * logp),
    "log1mp": ({}, lambda logp: (1 - logp.exp()).log()),
}

HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"softcap": 4.0},
    {"logit_scale": 0.3},
    {"bias": True, "softcap": 3.0, "logit_scale": 1.7},
]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_dense_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    values, f = FUNCTIONS[name]
    objective, state = build_objective(ObjectiveConfig(name=name)), state_of(**values)
    hidden, weight, _, targets = random_head(n=60, dtype=dtype)
    loss, _ = linear_objective(hidden, weight, targets, objective, state, chunk_size=7)
    grads = torch.autograd.grad(loss, (hidden, weight))
    # the reference is in fp64 on the same numbers, so that the tolerance is spent on one side only
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    true_loss = dense(*leaves, targets, f)
    true_grads = torch.autograd.grad(true_loss, leaves)
    assert loss.dtype == dtype
    assert (loss - true_loss).abs() <= tolerance * true_loss.abs()
    for grad, true in zip(grads, true_grads, strict=True):
        assert grad.dtype == dtype and relative(grad, true) < tolerance


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_bias_softcap_and_scale(head: dict) -> None:
    hidden, weight, bias, targets = random_head(dtype=torch.float64)
    head = head | {"bias": bias} if "bias" in head else head
    loss, tokens = linear_objective(hidden, weight, targets, nll, scale=0.1, chunk_size=5, **head)
    true = dense(hidden, weight, targets, lambda logp: -logp, **head)
    leaves = (hidden, weight, bias) if "bias" in head else (hidden, weight)
    torch.testing.assert_close(loss, 0.1 * true)
    grads = torch.autograd.grad(loss, leaves)
    for grad, true_grad in zip(grads, torch.autograd.grad(0.1 * true, leaves), strict=True):
        torch.testing.assert_close(grad, true_grad)
    torch.testing.assert_close(tokens.loss.sum(), true.detach())


@pytest.mark.parametrize("name", ["nll", "alpha", "focal", "huber", "poly1"])
def test_gradcheck(name: str) -> None:
    hidden, weight, bias, targets = random_head(n=7, d=3, v=11, dtype=torch.float64)
    options: dict[str, Any] = {"softcap": 5.0, "scale": torch.tensor(0.3), "chunk_size": 3}

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        state = state_of(alpha=0.7)
        return linear_objective(x, w, targets, REGISTRY[name], state, bias=b, **options)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_statistics_of_every_target_token() -> None:
    hidden, weight, _, targets = random_head(n=200, dtype=torch.float32)
    eaft = build_objective(ObjectiveConfig(name="eaft"))  # its weight is the top-20 entropy / 3
    _, tokens = linear_objective(hidden, weight, targets, eaft, chunk_size=32)
    learned = targets != -100
    z, y = logits_of(hidden.double(), weight.double())[learned].detach(), targets[learned]
    logp = z.log_softmax(1)
    target = logp.gather(1, y[:, None]).squeeze(1)
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
        found = getattr(tokens, name)
        torch.testing.assert_close(found, value.float(), rtol=5e-6, atol=1e-6, msg=name)
    assert torch.equal(tokens.top1, z.argmax(1) == y)
    assert 0.2 < tokens.top1.float().mean() < 0.98
    assert not any(x.requires_grad for x in tokens)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_p_is_accurate_at_both_ends(dtype: torch.dtype, tolerance: float) -> None:
    """Logits that are held exactly, so that all error is that of the statistics; 1 - p down to
    1e-13, where it is 0 in fp32."""
    gap = torch.arange(-60, 31, dtype=dtype)
    weight = torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=dtype)[:, None]  # logits 0, gap, 0, -2 gap
    hidden, targets = gap[:, None].requires_grad_(), torch.ones(len(gap), dtype=torch.long)
    loss, tokens = linear_objective(hidden, weight, targets, nll)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert tokens.one_minus_p.min() < 1e-12
    with mp.workdps(50):
        for i, g in enumerate(gap.tolist()):
            others = 2 + mp.exp(-2 * g)
            m = others / (others + mp.exp(g))
            true_grad = -2 * m * mp.exp(-2 * g) / others - m  # sum_i p_i W_i - W_y
            for value, true in (
                (tokens.one_minus_p[i], m),
                (tokens.logp[i], -mp.log1p(others * mp.exp(-g))),
                (grad[i, 0], true_grad),
            ):
                assert abs(value.item() - true) <= tolerance * abs(true), (g, value, true)


def test_bf16_keeps_its_precision_where_p_is_near_one() -> None:
    hidden, weight, _, targets = random_head(n=64, d=32, dtype=torch.bfloat16, targets=1.0)
    with torch.no_grad():
        hidden.mul_(torch.linspace(0.3, 1.5, 64)[:, None])
    # 32 sums, which bf16 would lose in
    loss, tokens = linear_objective(hidden, weight, targets, nll, chunk_size=2)
    grads = torch.autograd.grad(loss, (hidden, weight))
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    true = torch.autograd.grad(dense(*leaves, targets, lambda logp: -logp), leaves)
    near_one = tokens.one_minus_p < 0.01
    assert near_one.sum() > 10
    assert all(grad.dtype == torch.bfloat16 for grad in grads)
    # one rounding to bf16
    assert relative(grads[0], true[0]) < 3e-3 and relative(grads[1], true[1]) < 3e-3
    assert relative(grads[0][near_one], true[0][near_one]) < 3e-3


def test_bf16_logits_round_p() -> None:
    hidden, weight, _, targets = random_head(n=64, d=32, dtype=torch.bfloat16, targets=1.0)
    logp = logits_of(hidden.double(), weight.double()).log_softmax(1)
    true = logp.gather(1, targets[:, None]).squeeze(1)
    _, exact = linear_objective(hidden, weight, targets, nll)
    _, rounded = linear_objective(hidden, weight, targets, nll, logits_dtype=torch.bfloat16)
    assert (exact.logp.exp() / true.exp() - 1).abs().max() < 1e-5
    assert 1e-3 < (rounded.logp.exp() / true.exp() - 1).abs().max() < 0.3


def test_autocast_casts_the_factors_and_does_not_round_the_logits() -> None:
    hidden, weight, _, targets = random_head()
    plain, _ = linear_objective(hidden.bfloat16(), weight.bfloat16(), targets, nll)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = linear_objective(hidden, weight, targets, nll)
    assert torch.equal(plain, under) and under.dtype == torch.float32


@pytest.mark.parametrize(("n", "v"), [(1, 129), (5, 127), (3, 2), (4, 1)])
def test_odd_sizes(n: int, v: int) -> None:
    hidden, weight, _, targets = random_head(n=n, v=v, targets=1.0, dtype=torch.float64)
    eaft = build_objective(ObjectiveConfig(name="eaft"))
    loss, tokens = linear_objective(hidden, weight, targets, eaft, chunk_size=2)
    assert all(value.isfinite().all() for value in tokens)
    nll_loss, _ = linear_objective(hidden, weight, targets, nll)
    true = dense(hidden, weight, targets, lambda logp: -logp)
    torch.testing.assert_close(nll_loss, true)
    grads = torch.autograd.grad(nll_loss, (hidden, weight))
    for grad, true_grad in zip(grads, torch.autograd.grad(true, (hidden, weight)), strict=True):
        torch.testing.assert_close(grad, true_grad)
    if v == 1:
        assert not loss.any() and tokens.top1.all() and not tokens.entropy.any()


def test_a_bias_of_minus_infinity_rules_tokens_out() -> None:
    hidden, weight, _, targets = random_head(v=50, targets=1.0)
    bias = torch.zeros(60)
    bias[50:] = -torch.inf
    padded = torch.cat([weight.detach(), torch.zeros(10, D)]).requires_grad_()
    eaft = build_objective(ObjectiveConfig(name="eaft"))
    loss, tokens = linear_objective(hidden, padded, targets, eaft, bias=bias)
    true, true_tokens = linear_objective(hidden, weight, targets, eaft)
    torch.testing.assert_close(loss, true)
    for value, true_value in zip(tokens, true_tokens, strict=True):
        torch.testing.assert_close(value, true_value)
    grad, true_grad = torch.autograd.grad(loss, padded)[0], torch.autograd.grad(true, weight)[0]
    torch.testing.assert_close(grad, torch.cat([true_grad, torch.zeros(10, D)]))


def test_a_non_finite_input_shows_in_the_loss_and_gradient() -> None:
    hidden, weight, _, targets = random_head(targets=1.0)
    with torch.no_grad():
        hidden[3, 0] = torch.nan
    loss, tokens = linear_objective(hidden, weight, targets, REGISTRY["neg_p"])
    assert loss.isnan() and torch.autograd.grad(loss, weight)[0].isnan().any()
    assert tokens.logp.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_cpu_and_waits_for_the_device_only_to_skip_rows(
    dtype: torch.dtype, implementation: str
) -> None:
    # an odd vocabulary
    hidden, weight, bias, targets = random_head(n=200, d=64, v=1001, dtype=dtype)
    target_idx = (targets != -100).nonzero().squeeze(1)
    settings = ObjectiveConfig(name="threshold", base="talr", lower=0.05, params={"batch": 1})
    objective = build_objective(settings)
    arguments = {"targets": targets[target_idx], "target_idx": target_idx}
    arguments |= {"source": target_idx % 2, "sequence": target_idx // 30}
    waits = 0

    def on(device: str, **options: Any) -> list[Tensor]:
        leaves = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight, bias)]
        options |= {name: value.to(device) for name, value in arguments.items()}
        options["state"] = ObjectiveState(*(x.to(device) for x in state_of(2, lower=0.05)))
        x, w, options["bias"] = leaves
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss, tokens = linear_objective(
                    x, w, objective=objective, chunk_size=64, softcap=20.0, **options
                )
                grads = torch.autograd.grad(loss, leaves)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        nonlocal waits
        waits = sum("synchroniz" in str(warning.message) for warning in caught)
        return [tensor.cpu() for tensor in (loss.detach(), *grads, *tokens)]

    true = on("cpu")
    chunks = -(-len(target_idx) // 64)
    for skip in (False, True):
        found = on("cuda", implementation=implementation, skip_zeros=skip)
        assert waits == (chunks if skip else 0)
        again = on("cuda", implementation=implementation, skip_zeros=skip)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        for value, expected in zip(found, true, strict=True):
            if value.dtype == torch.bool:
                assert torch.equal(value, expected)
            else:
                assert relative(value, expected) < (1e-5 if value.dtype == torch.float32 else 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize(("logits", "tolerance"), [(None, 2.5e-3), (torch.bfloat16, 1.5e-2)])
def test_cuda_against_fp64_with_several_sums(
    implementation: str,
    logits: torch.dtype | None,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G is gathered, multiplied and summed several times: in fp32, or where the logits are bf16
    and the sums few, in bf16."""
    monkeypatch.setattr(chunks, "GATHERED_BYTES", 700 * 4099 * 2)
    head = random_head(n=3000, d=128, v=4099, dtype=torch.bfloat16)
    hidden, weight, _, targets = (x.cuda() for x in head)
    # logits of a dozen, as models have: fp32 rounds larger ones by more than 1e-5
    hidden, weight = (0.1 * hidden.detach()).requires_grad_(), weight.detach().requires_grad_()
    target_idx = (targets != -100).nonzero().squeeze(1)
    y, options = targets[target_idx], {"implementation": implementation, "logits_dtype": logits}
    loss, tokens = linear_objective(
        hidden, weight, y, REGISTRY["neg_p"], target_idx=target_idx, chunk_size=128, **options
    )
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    true = dense(*leaves, targets, lambda logp: -logp.exp())
    assert relative(loss.detach(), true.detach()) < (1e-5 if logits is None else 1e-3)
    grads = torch.autograd.grad(loss, (hidden, weight))
    for grad, expected in zip(grads, torch.autograd.grad(true, leaves), strict=True):
        assert relative(grad, expected) < tolerance
    if logits is not None:
        return
    z = (leaves[0].detach() @ leaves[1].detach().t())[target_idx]
    p = z.softmax(1).gather(1, y[:, None]).squeeze(1)
    assert ((tokens.logp.exp() - p) / p).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_cuda_log_probs_and_cross_entropy_against_fp64(implementation: str) -> None:
    """In eager mode, and compiled in one graph, which may round another way."""
    head = random_head(n=1000, d=128, v=4099, dtype=torch.bfloat16)
    hidden, weight, _, targets = (x.detach().cuda() for x in head)
    hidden, weight = (0.1 * hidden).requires_grad_(), weight.requires_grad_()
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    learned = int((targets != -100).sum())
    true = dense(*leaves, targets, lambda logp: -logp) / learned
    expected = torch.autograd.grad(true, leaves)
    options = {"implementation": implementation, "chunk_size": 128}

    def by_token(hidden: Tensor, weight: Tensor) -> Tensor:
        return -linear_logprobs(hidden, weight, targets, **options)[0].sum() / learned

    def mean(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, **options)

    for loss in (by_token, mean):
        results = []
        for call in (loss, torch.compile(loss, fullgraph=True)):
            value = call(hidden, weight)
            results.append((value.detach(), *torch.autograd.grad(value, (hidden, weight))))
        for found, again in zip(*results, strict=True):
            assert relative(again, found) < 5e-4
        assert relative(results[0][0], true.detach()) < 1e-5
        for found, wanted in zip(results[0][1:], expected, strict=True):
            assert relative(found, wanted) < 2.5e-3


@pytest.mark.gpu
def test_a_target_outside_of_the_vocabulary_is_an_error_of_the_device() -> None:
    """In a process of its own, whose device is of no use afterwards."""
    code = """
import torch
from adaptsft_kernels import linear_objective
x, w = torch.zeros(2, 16, device="cuda"), torch.zeros(9, 16, device="cuda")
y = torch.tensor([1, 9], device="cuda")
linear_objective(x, w, y, lambda tokens, state: (tokens.logp, tokens.logp))
torch.cuda.synchronize()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO / "kernels")
    assert done.returncode and "device-side assert" in done.stderr
