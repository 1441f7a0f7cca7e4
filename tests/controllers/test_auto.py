"""The default controller does on known statistics what docs/controllers.md describes."""

import pytest

from tests.controllers.steps import (
    TAKEN,
    adaptive,
    alone,
    progress,
    statistics,
    trajectory,
)


def test_auto_learns_leans_and_sharpens_at_the_same_shares_of_any_run():
    for steps in (100, 1_000, 10_000):
        at, values = (0.1, 0.2, 0.35, 0.5, 0.8, 0.9, 1.0), []
        for share in at:
            objective = adaptive(name="auto")
            step = round(share * (steps - 1))
            objective.update(statistics([0.9, 0.1]), TAKEN, progress(step, steps))
            values.append(float(objective.state.alpha))
        assert values == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0, 1.5, 2.0], abs=0.05)


def test_the_state_after_the_last_step_is_that_of_the_last():
    """The final evaluation reports the loss with it, and the last checkpoint holds it."""
    objective = adaptive(name="auto")
    for step in (5, 6):
        objective.update(statistics([0.9, 0.95]), TAKEN, progress(step, steps=6))
        assert float(objective.state.alpha) == pytest.approx(2.0)


def test_auto_does_not_lean_on_a_source_that_the_targets_contradict():
    right, wrong = statistics([0.9], [0.9]), statistics([0.9], [0.9])
    # sure (mean c .9) and contradicted (mean p .1)
    wrong.column("p")[1] = 0.1 * wrong.column("tokens")[1]
    objective = adaptive(2, name="auto", shrinkage=0.0)
    values = trajectory(objective, [wrong] * 50 + [right] * 49)
    assert values[50] == pytest.approx([1.0, 0.0], abs=0.02)
    assert values[-1] == pytest.approx([2.0, 2.0])


def test_a_source_first_seen_late_is_measured_then():
    """It is not taken for one of which p = 0 was measured."""
    absent, present = statistics([0.6, 0.9], []), statistics([0.6, 0.9], [0.6, 0.9, 0.7])
    late = trajectory(adaptive(2, name="auto", shrinkage=0.0), [absent] * 60 + [present] * 30)
    early = trajectory(adaptive(2, name="auto", shrinkage=0.0), [present] * 90)
    assert late[61][1] == pytest.approx(early[61][1])
    assert early[61][1] > 0


def test_base_statistics_replace_the_first_step():
    """k of a base model that the targets contradict is remembered for some steps."""
    base = statistics([0.9])
    base.column("p")[0] = 0.1 * base.column("tokens")[0]
    each = [statistics([0.9])] * 60
    with_base = alone(trajectory(adaptive(base=base, name="auto", params={"learn": 0.0}), each))
    without = alone(trajectory(adaptive(name="auto", params={"learn": 0.0}), each))
    assert with_base[2] == 0.0 < without[2]
    assert with_base[-1] == pytest.approx(without[-1])
