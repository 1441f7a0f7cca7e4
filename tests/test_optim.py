"""Learning-rate shapes, parameter groups and schedules of the objective."""

import itertools
import math

import pytest
import torch

from adaptsft import controllers
from adaptsft.config import ControllerConfig, ObjectiveConfig, TrainConfig
from adaptsft.optim import build_optimizer, learning_rate

STEPS = 100


def rates(**settings) -> list[float]:
    config = TrainConfig(lr=1.0, **settings)
    return [learning_rate(step, STEPS, config) for step in range(STEPS)]


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


def test_weight_decay_spares_vectors_and_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.5 if p.ndim == 2 else 0.0 for p in model.parameters() if p.requires_grad}


def control_at(step: int, **settings) -> controllers.Control:
    control = controllers.initial_control(ObjectiveConfig(alpha=0.0, lower=0.1), 2, torch.device("cpu"))
    return controllers.apply(control, ControllerConfig(**settings), step, STEPS)


def test_schedules_start_end_and_move_only_their_parameter():
    for name in ("linear", "cosine"):
        settings = {"name": name, "start": 0.2, "end": 1.0}
        values = [float(control_at(step, **settings).alpha[0]) for step in range(STEPS)]
        assert values[0] == pytest.approx(0.2)
        assert values[-1] == pytest.approx(1.0)
        assert all(a < b for a, b in itertools.pairwise(values))
    moved = control_at(STEPS - 1, name="linear", parameter="lower", start=0.0, end=0.5)
    assert moved.lower.tolist() == [0.5, 0.5]
    assert moved.alpha.tolist() == [0.0, 0.0]


def test_begin_and_finish_bound_the_move():
    settings = {"name": "linear", "start": 0.0, "end": 1.0, "begin": 0.25, "finish": 0.75}
    values = [float(control_at(step, **settings).alpha[0]) for step in range(STEPS)]
    assert set(values[:25]) == {0.0}
    assert set(values[75:]) == {1.0}
    assert values[49] == pytest.approx((49 / 99 - 0.25) / 0.5, abs=1e-6)
    step_change = [float(control_at(step, name="linear", begin=0.5, finish=0.5).alpha[0]) for step in range(STEPS)]
    assert step_change == [0.0] * 50 + [1.0] * 50


def test_fixed_keeps_the_configured_values():
    control = control_at(50, name="fixed")
    assert control.lower.tolist() == pytest.approx([0.1, 0.1])


def test_a_skipped_step_does_not_steer():
    old = controllers.initial_control(ObjectiveConfig(), 1, torch.device("cpu"))
    new = old._replace(mean_p=torch.tensor([float("nan")]))
    assert controllers.unless(torch.tensor(1.0), new, old).mean_p.tolist() == [0.5]
    assert math.isnan(controllers.unless(torch.tensor(0.0), new, old).mean_p)
