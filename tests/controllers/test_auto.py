"""The default schedule, and the feedback per source, do on known statistics what
docs/controllers.md describes."""

import pytest

from tests.controllers.steps import (
    TAKEN,
    adaptive,
    alone,
    progress,
    statistics,
    trajectory,
)


@pytest.mark.parametrize("steps", [100, 1_000, 10_000])
def test_auto_has_the_same_shape_in_any_run(steps):
    at, alpha, floor = (0.1, 0.2, 0.45, 0.7, 0.85, 1.0), [], []
    for share in at:
        objective = adaptive(name="auto")
        step = round(share * (steps - 1))
        objective.update(statistics([0.9, 0.1]), TAKEN, progress(step, steps))
        alpha.append(float(objective.state.alpha))
        floor.append(float(objective.state.floor))
    assert alpha == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.5, 2.0], abs=0.02)
    assert floor == pytest.approx([0.3, 0.3, 0.0173, 0.001, 0.001, 0.001], rel=0.1)


def test_the_state_after_the_last_step_is_that_of_the_last():
    """The final evaluation reports the loss with it, and the last checkpoint holds it."""
    objective = adaptive(name="auto")
    for step in (5, 6):
        objective.update(statistics([0.9, 0.95]), TAKEN, progress(step, steps=6))
        assert float(objective.state.alpha) == pytest.approx(2.0)


def test_the_clock_needs_no_tokens_of_a_source():
    objective = adaptive(2, name="auto")
    values = trajectory(objective, [statistics([0.5], [])] * 99, "floor")
    assert all(one == other for one, other in values)
    assert values[-1][0] == pytest.approx(0.001)


def test_auto_rl_ends_where_entropy_is_left():
    objective = adaptive(name="auto_rl")
    values = trajectory(objective, [statistics([0.5])] * 99, "floor")
    assert alone(values)[-1] == pytest.approx(0.1)
    assert float(objective.state.alpha) == 1.0


def improving(share: float):
    """Statistics of a source that is learned, and of one of whose targets `share` are the model's
    first choice."""
    found = statistics([0.9], [0.9])
    found.column("top1")[1] = share * found.column("tokens")[1]
    return found


def test_when_learned_waits_for_the_source_that_still_improves():
    objective = adaptive(2, name="when_learned", shrinkage=0.0)
    steps = [improving(min(1.0, 0.03 * step)) for step in range(99)]
    values = trajectory(objective, steps, "floor")
    began = [next(i for i, of in enumerate(values) if of[source] < 0.29) for source in (0, 1)]
    assert 10 <= began[0] <= 14
    assert 34 <= began[1] <= 42
    assert all(one <= other + 1e-9 for one, other in values)
    assert values[-1] == pytest.approx([0.001, 0.001], rel=1e-3)


def test_when_learned_does_not_wait_for_ever_nor_lean_on_what_is_contradicted():
    wrong = statistics([0.9], [0.9])
    wrong.column("p")[1] = 0.1 * wrong.column("tokens")[1]  # sure, and contradicted
    objective = adaptive(2, name="when_learned", shrinkage=0.0)
    values = trajectory(objective, [wrong] * 99, "floor")
    assert values[35][0] < 0.1
    assert values[35][1] == pytest.approx(0.3)
    assert values[-1][1] == pytest.approx(0.001, rel=1e-2)


def test_base_statistics_stand_for_the_steps_before_the_first():
    """A base model that the targets contradict is remembered for some steps."""
    base = statistics([0.9])
    base.column("p")[0] = 0.0
    settings = {"name": "when_learned", "params": {"begin": 0.0, "borne_out": 0.8}}
    each = [statistics([0.9])] * 20
    without = alone(trajectory(adaptive(**settings), each, "floor"))
    remembered = alone(trajectory(adaptive(base=base, **settings), each, "floor"))
    assert without[3] < remembered[3] == pytest.approx(0.3)
