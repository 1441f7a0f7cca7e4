"""The gradients of the loss: what they cost, and where they are zero."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.build import build_objective
from adaptsft_kernels import linear_objective
from adaptsft_kernels.gradients import coefficients, d_hidden, scaled_rows
from adaptsft_kernels.row_kernels import Head
from adaptsft_kernels.token_statistics import statistics_of
from adaptsft_kernels.torch_rows import TorchRows
from tests.kernels.reference import D, V, logits_of, nll, random_head, relative, state_of


def flops(*args: Any, **options: Any) -> int:
    """Of a call of the loss and its backward pass."""
    with FlopCounterMode(display=False) as counter:
        linear_objective(*args, **options)[0].backward()
    return counter.get_total_flops()


def test_only_target_tokens_cost_and_only_active_ones_cost_gradients() -> None:
    hidden, weight, _, targets = random_head(n=40)
    count, product = int((targets != -100).sum()), 2 * D * V
    assert count < 35
    assert flops(hidden, weight, targets, nll, chunk_size=8) == 3 * count * product
    (grad,) = torch.autograd.grad(linear_objective(hidden, weight, targets, nll)[0], hidden)
    assert not grad[targets == -100].any() and grad[targets != -100].ne(0).all()

    above_fifth = build_objective(ObjectiveConfig(name="threshold", lower=0.2))
    call = hidden, weight, targets, above_fifth, state_of(lower=0.2)
    active = int((linear_objective(*call)[1].weight != 0).sum())
    assert 0 < active < count
    assert flops(*call, chunk_size=8) == (count + 2 * active) * product
    assert flops(hidden, weight.detach(), targets, nll) == 2 * count * product
    assert flops(hidden.detach(), weight, targets, nll) == 2 * count * product
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = linear_objective(hidden, weight, targets, nll)
    assert counter.get_total_flops() == count * product and not loss.requires_grad


def test_tokens_of_weight_zero_may_be_kept_in_the_products() -> None:
    hidden, weight, _, targets = random_head(n=40)
    above_fifth = build_objective(ObjectiveConfig(name="threshold", lower=0.2))
    call, results = (hidden, weight, targets, above_fifth, state_of(lower=0.2)), []
    for skip in (True, False):
        loss, _ = linear_objective(*call, chunk_size=8, skip_zeros=skip)
        results.append(torch.autograd.grad(loss, (hidden, weight)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    count = int((targets != -100).sum())
    assert flops(*call, chunk_size=8, skip_zeros=False) == 3 * count * 2 * D * V


def test_no_target_token_gives_a_connected_zero() -> None:
    hidden, weight, bias, targets = random_head()
    nothing = torch.full_like(targets, -100)
    for objective in (nll, build_objective(ObjectiveConfig(name="cayley", params={"batch": 1}))):
        loss, tokens = linear_objective(hidden, weight, nothing, objective, state_of(), bias=bias)
        grads = torch.autograd.grad(loss, (hidden, weight, bias))
        assert not loss.any() and all(not grad.any() for grad in grads)
        assert all(len(value) == 0 for value in tokens) and tokens.top1.dtype == torch.bool


def test_weight_zero_everywhere() -> None:
    hidden, weight, _, targets = random_head()
    above_one = build_objective(ObjectiveConfig(name="threshold", lower=1.0))
    state = state_of(lower=1.0)
    loss, tokens = linear_objective(hidden, weight, targets, above_one, state, chunk_size=4)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert not loss.any() and not any(grad.any() for grad in grads)
    assert tokens.logp.isfinite().all() and (tokens.logp < 0).all()


def test_frozen_inputs_and_two_backwards_and_upstream() -> None:
    hidden, weight, _, targets = random_head()
    frozen_hidden, frozen_weight = hidden.detach(), weight.detach()
    loss, _ = linear_objective(hidden, weight, targets, nll)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(loss, (hidden, weight))
    for a, b, c in zip(first, second, third, strict=True):
        torch.testing.assert_close(b, 3 * a)
        assert torch.equal(a, c)
    loss, _ = linear_objective(hidden, frozen_weight, targets, nll)
    assert torch.equal(torch.autograd.grad(loss, hidden)[0], first[0])
    loss, _ = linear_objective(frozen_hidden, weight, targets, nll)
    assert torch.equal(torch.autograd.grad(loss, weight)[0], first[1])
    assert not linear_objective(frozen_hidden, frozen_weight, targets, nll)[0].requires_grad


def test_a_promise_of_unit_upstream_is_checked() -> None:
    hidden, weight, bias, targets = random_head()
    for options in ({}, {"bias": bias}):
        leaves = [hidden, weight, *options.values()]
        losses = [
            linear_objective(hidden, weight, targets, nll, unit_upstream=unit, **options)[0]
            for unit in (False, True)
        ]
        grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        with pytest.raises(RuntimeError, match="unit_upstream=True: backward must begin at"):
            torch.autograd.grad(2 * losses[1], leaves)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("power", [0, 1], ids=["NLL", "-p"])
def test_the_roundings_of_bf16_factors(power: int, softcap: float | None) -> None:
    """What a GPU computes from bf16 factors and fp32 logits, step by step, and what it is off."""
    hidden, weight, _, targets = random_head(n=1000, d=64, v=1000, targets=2.0)
    x, w = (0.5 * hidden.detach()).bfloat16(), weight.detach().bfloat16()
    rows = TorchRows(Head(w.float(), None, softcap, 1.0), torch.float32, torch.float32)
    sums, _ = rows.sums(x.float(), targets, (), append=True)
    tokens, g = statistics_of(sums, {}, None, None), rows.take().bfloat16()
    p = tokens.logp.double().exp()
    assert p.quantile(0.2) < 0.3 and p.quantile(0.8) > 0.7

    leaves = [leaf.double().requires_grad_() for leaf in (x, w)]
    logp = logits_of(*leaves, softcap=softcap).log_softmax(1).gather(1, targets[:, None])
    true = torch.autograd.grad((logp.squeeze(1) * -(p**power)).sum(), leaves)
    errors = []
    for dtype in (torch.bfloat16, torch.float32):  # with the rounding of G made up for, or not
        a = p.float() ** power * coefficients(sums, tokens.one_minus_p, dtype, softcap)
        found = (
            d_hidden(g.float(), a, rows.head),
            g.float().t() @ scaled_rows(x, a, w.dtype).float(),
        )
        errors.append([relative(f.bfloat16(), t) for f, t in zip(found, true, strict=True)])
    (of_hidden, of_weight), plain = errors
    print(f"d hidden {of_hidden:.2e}, d weight {of_weight:.2e}; not made up for: ", end="")
    print(", ".join(f"{error:.2e}" for error in plain))
    assert of_hidden < 2.0e-3 and of_weight < 2.5e-3
    assert plain[0] > 1.2 * of_hidden and plain[1] > 1.1 * of_weight
