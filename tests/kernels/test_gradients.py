"""The gradients of the loss: what they cost, and where they are zero."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.build import build_objective
from adaptsft_kernels import linear_objective
from tests.kernels.reference import D, V, nll, random_head, state_of


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
