"""Learning-rate shapes and parameter groups."""

import itertools
import math

import pytest
import torch

from adaptsft.config.schema import TrainConfig
from adaptsft.training.optim import build_optimizer, learning_rate

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
