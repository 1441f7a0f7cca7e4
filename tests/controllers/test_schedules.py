"""Schedules are exact functions of the progress of the run."""

import itertools

import pytest

from tests.controllers.steps import STEPS, adaptive, alone, statistics, trajectory


def scheduled(**settings: object) -> list[float]:
    field = str(settings.get("parameter", "alpha"))
    return alone(trajectory(adaptive(**settings), [statistics([0.5])] * (STEPS - 1), field))


def test_schedules_start_end_and_bound_the_move():
    for name in ("linear", "cosine"):
        values = scheduled(name=name, start=0.2, end=1.0)
        assert (values[0], values[-1]) == (pytest.approx(0.2), pytest.approx(1.0))
        assert all(a < b for a, b in itertools.pairwise(values))
    values = scheduled(name="linear", start=0.0, end=1.0, begin=0.25, finish=0.75)
    assert set(values[:25]) == {0.0}
    assert set(values[75:]) == {1.0}
    assert values[49] == pytest.approx((49 / 99 - 0.25) / 0.5, abs=1e-6)
    assert scheduled(name="linear", begin=0.5, finish=0.5) == [0.0] * 50 + [1.0] * 50
    assert scheduled(name="linear", parameter="lower", end=0.5)[-1] == 0.5
    assert scheduled(name="linear", parameter="floor", start=0.25, end=0.0)[0] == 0.25


def test_piecewise_goes_through_its_points_and_lr_follows_the_learning_rate():
    values = scheduled(name="piecewise", points=[[0.2, 0.1], [0.6, 0.1], [0.8, 2.0]])
    assert values[0] == values[50] == pytest.approx(0.1)
    assert values[69] == pytest.approx(0.1 + 1.9 * (69 / 99 - 0.6) / 0.2, abs=1e-6)
    assert values[-1] == pytest.approx(2.0)
    values = scheduled(name="lr", start=0.0, end=1.0)  # warm-up of 10 steps, then a cosine to 0
    assert set(values[:11]) == {0.0}
    assert values[55] == pytest.approx(0.5)
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_a_schedule_moves_a_source_that_has_no_tokens():
    each = [statistics([0.5], [])] * (STEPS - 1)
    assert trajectory(adaptive(2, name="linear"), each)[-1] == [1.0, 1.0]
