"""Learning-rate shapes and parameter groups."""

import itertools
import math

import pytest
import torch

from adaptsft.config.schema import TrainConfig
from adaptsft.training.optim import build_optimizer, clipped, guarded_step, learning_rate

STEPS = 100


def rates(steps: int = STEPS, **settings) -> list[float]:
    config = TrainConfig(lr=1.0, **settings)
    return [learning_rate(step, steps, config) for step in range(steps)]


def test_warmup_rises_linearly_to_the_peak_and_is_never_zero():
    values = rates(warmup_ratio=0.1, lr_schedule="constant")
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(values[10:]) == {1.0}


def test_cosine_linear_and_wsd_end_where_they_should():
    cosine = rates(warmup_ratio=0.0, lr_schedule="cosine", lr_min_ratio=0.1)
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * 0.99)))
    linear = rates(warmup_ratio=0.0, lr_schedule="linear")
    assert linear[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(linear))
    wsd = rates(warmup_ratio=0.1, lr_schedule="wsd", decay_ratio=0.2)
    assert set(wsd[10:80]) == {1.0}
    assert wsd[80:] == pytest.approx([(20 - i) / 20 for i in range(20)])


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_wsd_decays_in_a_run_of_a_few_steps_too(steps):
    short = {"steps": steps, "warmup_ratio": 0.03, "lr_schedule": "wsd"}
    assert rates(**short, decay_ratio=0.2) == [1.0] * (steps - 1) + [0.5]
    assert rates(**short, decay_ratio=0.0) == [1.0] * steps
    assert rates(**short | {"steps": 1}, decay_ratio=0.2) == [1.0]


def test_weight_decay_spares_vectors_and_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay == {
        id(p): 0.5 if p.ndim == 2 else 0.0 for p in model.parameters() if p.requires_grad
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "max_norm"), [(1.0, 0.5), (1.6, 0.5), (1.6, 0.0), (1.0, 1e6)])
def test_scaled_and_clipped_within_adamw_is_as_before_it(dtype, scale, max_norm):
    """Against clip_grad_norm_ and the plain AdamW on the scaled gradients in fp64; to the bit where
    nothing is to be done."""
    generator = torch.Generator().manual_seed(0)
    shapes, settings = [(7, 5), (11,)], {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    exact = [torch.nn.Parameter(tensor.double()) for tensor in start]
    ours = torch.nn.ParameterList([tensor.clone() for tensor in start])
    plain = torch.nn.ParameterList([tensor.clone() for tensor in start])
    by_the_book = torch.optim.AdamW(exact, foreach=False, **settings)
    fused, undivided = (torch.optim.AdamW(m, fused=True, **settings) for m in (ours, plain))
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        for parameter, same, alike, gradient in zip(exact, ours, plain, gradients, strict=True):
            parameter.grad, same.grad = gradient.double() * scale, gradient.clone()
            alike.grad = gradient.clone()
        expected = torch.nn.utils.clip_grad_norm_(exact, max_norm or math.inf)
        by_the_book.step()
        norm, divisor = clipped(ours, torch.tensor(scale), max_norm)
        assert float(norm) == pytest.approx(float(expected), rel=1e-5)
        guarded_step(fused, 0.1, torch.zeros(()), divisor)
        guarded_step(undivided, 0.1, torch.zeros(()))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2  # moments and weights are rounded to it
    for parameter, same, alike in zip(exact, ours, plain, strict=True):
        # AdamW divides a constant factor out of the weights' step: the moments show it
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = fused.state[same][key], by_the_book.state[parameter][key]
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance / 9)
            untouched = torch.equal(found, undivided.state[alike][key])
            assert untouched == (scale == 1 and max_norm > 1)
        torch.testing.assert_close(same.double(), parameter, rtol=tolerance, atol=tolerance)


def test_a_step_that_is_skipped_leaves_weights_and_moments_whatever_the_gradients():
    module = torch.nn.Linear(3, 4)
    optimizer = build_optimizer(module, TrainConfig())
    states = []
    for value, skip in ((1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        _, divisor = clipped(module, torch.ones(()), 1.0)
        guarded_step(optimizer, 0.1, torch.tensor(skip), divisor)
        moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
        states.append([tensor.clone() for tensor in [*module.parameters(), *moments]])
    for later in states[1:]:
        assert all(map(torch.equal, states[0], later))


def test_the_norm_of_large_gradients_is_exact():
    """One after the other, a million squares lose 4e-5 in fp32."""
    module = torch.nn.Linear(1024, 1024)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        sizes = torch.rand(parameter.shape, generator=generator) ** 8
        parameter.grad = sizes * torch.randn(parameter.shape, generator=generator)
    expected = sum(p.grad.double().square().sum() for p in module.parameters()) ** 0.5
    norm, _ = clipped(module, torch.ones(()), 1.0)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(float(expected), rel=1e-6)
