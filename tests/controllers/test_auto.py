"""The default does, on known statistics, what docs/controllers.md describes."""

import pytest

from tests.controllers.steps import (
    KNOWN,
    NEW,
    TAKEN,
    adaptive,
    alone,
    lr_scales,
    progress,
    statistics,
    trajectory,
)

WEAK, HALF, STRONG = [0.1], [0.5], [0.9]


def floor_at(mean_p: float) -> float:
    return 0.3 * (1 - mean_p) ** 2


@pytest.mark.parametrize("steps", [100, 1_000, 10_000])
def test_the_shape_is_the_same_in_any_run(steps):
    at, alpha, floor = (0.0, 0.4, 0.65, 0.9, 1.0), [], []
    for share in at:
        objective = adaptive(name="auto")
        objective.update(statistics(HALF), TAKEN, progress(round(share * (steps - 1)), steps))
        alpha.append(float(objective.state.alpha))
        floor.append(float(objective.state.floor) / floor_at(0.5))
    start = 0.3 + 0.7 * 0.5**3
    sharper = [start + (2 - start) * share for share in (0, 0, 0.3, 0.8, 1)]
    assert alpha == pytest.approx(sharper, abs=0.03)
    assert floor == pytest.approx([1.0, 1.0, 0.003**0.5, 0.003, 0.003], rel=0.1)


def test_sources_go_their_own_ways():
    """A strong source is near -p at once; the one that is learned follows, no faster than the run;
    the one that is not keeps alpha and floor until the clock takes them."""
    objective = adaptive(3, name="auto", shrinkage=0.0)
    steps = [statistics(STRONG, [min(0.1 + 0.02 * step, 0.9)], WEAK) for step in range(99)]
    alpha = trajectory(objective, steps)
    assert alpha[5] == pytest.approx([0.81, 0.3, 0.3], abs=0.02)
    assert alpha[45] == pytest.approx([0.81, 0.3 + 0.7 * 0.45**3, 0.3], abs=0.01)
    assert alpha[-1] == pytest.approx([2.0, 2.0, 2.0])
    floors = trajectory(adaptive(3, name="auto", shrinkage=0.0), steps, "floor")
    assert floors[30] == pytest.approx([floor_at(p) for p in (0.9, 0.63, 0.1)], rel=0.05)
    assert all(a <= b <= c for a, b, c in floors[1:])


def test_a_source_without_tokens_is_taken_for_a_weak_one():
    objective = adaptive(2, name="auto", shrinkage=0.0)
    values = trajectory(objective, [statistics(STRONG, [])] * 9)
    assert [value[1] for value in values] == pytest.approx([0.3] * 10)


def test_alpha_follows_what_is_learned_slowly_no_faster_than_m():
    slow = [statistics([min(0.1 + 0.004 * step, 0.9)]) for step in range(99)]
    alpha = alone(trajectory(adaptive(name="auto"), slow))
    assert alpha[45] == pytest.approx(0.3 + 0.7 * 0.27**3, abs=0.002)


def test_an_odd_step_hardly_moves_a_long_run():
    """The mean is over 3 % of the run, however long that is."""
    objective = adaptive(name="auto")
    for step, p in enumerate([STRONG] * 10 + [WEAK], start=1):
        objective.update(statistics(p), TAKEN, progress(step, steps=1_000))
    after = float(objective.state.floor)
    assert floor_at(0.9) < after < 2 * floor_at(0.9) < floor_at(0.1)


def test_base_statistics_stand_for_the_steps_before_the_first():
    with_base = adaptive(name="auto", base=statistics(STRONG))
    assert float(with_base.state.alpha) == pytest.approx(0.3 + 0.7 * 0.9**3)
    assert float(with_base.state.floor) == pytest.approx(floor_at(0.9))
    assert float(adaptive(name="auto").state.alpha) == pytest.approx(0.3)


def test_the_state_after_the_last_step_is_that_of_the_last():
    """The final evaluation reports the loss with it, and the last checkpoint holds it."""
    objective = adaptive(name="auto")
    for step in (5, 6):
        objective.update(statistics(STRONG), TAKEN, progress(step, steps=6))
        assert float(objective.state.alpha) == pytest.approx(2.0)


def test_auto_rl_ends_where_entropy_is_left():
    objective = adaptive(name="auto_rl")
    assert alone(trajectory(objective, [statistics(HALF)] * 99))[-1] == pytest.approx(1.0)


def scale(*of_source: list[float]) -> float:
    return lr_scales("auto", statistics(*of_source))[-1]


def test_a_known_source_is_trained_in_short_steps():
    """The weights of these statistics are p: K = E[p (1 - p)] is kept, L = E[(1 - p)^2] left."""
    kept, left = (9 * 0.99 * 0.01 + 0.001 * 0.999) / 10, (9 * 0.01**2 + 0.999**2) / 10
    mean_p = (9 * 0.99 + 0.001) / 10
    assert scale(KNOWN) == pytest.approx(kept / (kept + mean_p**6 * left), rel=1e-6)
    assert scale(NEW) > 0.95


def test_the_scale_reads_the_source_as_it_was_in_the_first_steps():
    """b is m over 3 % of the run, 9 steps of 300, and does not move with what is learned later."""
    objective, scales = adaptive(name="auto"), []
    for done in range(1, 299):
        p = 0.5 if done < 9 else 0.9
        objective.update(statistics([p, 1e-3]), TAKEN, progress(done, steps=300))
        scales.append(float(objective.lr_scale))
    mean_p, p, low = (0.5 + 1e-3) / 2, 0.9, 1e-3
    kept, left = (p * (1 - p) + low * (1 - low)) / 2, ((1 - p) ** 2 + (1 - low) ** 2) / 2
    assert scales[-1] == pytest.approx(kept / (kept + mean_p**6 * left), rel=0.01)
    assert scales[9] > scales[100], "K and L are running means"


@pytest.mark.parametrize("steps", [20, 1_000])
def test_a_measured_base_model_is_trusted_as_measured(steps):
    base = [0.9, 1e-3]
    objective = adaptive(name="auto", base=statistics(base))
    for done in range(1, steps):
        objective.update(statistics(WEAK), TAKEN, progress(done, steps))
    assert float(objective.memory["base_p"][0]) == pytest.approx(sum(base) / 2)


def test_a_source_that_was_new_is_trained_in_full_steps_when_it_is_known():
    objective = adaptive(name="auto")
    for done in range(1, 90):
        objective.update(statistics(NEW if done < 10 else KNOWN), TAKEN, progress(done))
    assert float(objective.state.alpha) > 1 and float(objective.lr_scale) > 0.98


def test_the_step_of_a_mixture_is_that_of_the_source_that_is_learned():
    mixed = [0.01, 0.3, 0.6] * 3  # keeps 15 times the gradient of the known source
    assert scale(KNOWN, mixed) > 0.9
    assert scale(KNOWN, KNOWN) == pytest.approx(scale(KNOWN))


def test_without_gradient_the_scale_is_a_number():
    assert scale([1.0]) == 0.0
    assert adaptive(name="linear").lr_scale is None
