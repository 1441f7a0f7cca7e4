"""Controllers are pure, schedules are exact, and closed loops do on known statistics what docs/controllers.md says."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig, TrainConfig
from adaptsft.controllers.base import REGISTRY, Progress
from adaptsft.controllers.runtime import ControllerRuntime, build
from adaptsft.controllers.schedules import Schedule
from adaptsft.controllers.validate import describe_controllers
from adaptsft.objectives.state import initial_state
from adaptsft.statistics.step import (
    BINS,
    COLUMNS,
    LOG_NLL_RANGE,
    LOGIT_RANGE,
    SourceStatistics,
    StepStatistics,
    bin_index,
)

STEPS = 100
CPU = torch.device("cpu")
CLOSED = [name for name, cls in REGISTRY.items() if not issubclass(cls, Schedule)]
KEEP = torch.tensor(0.0)


def steering(
    sources: int = 1, steps: int = STEPS, base: SourceStatistics | None = None, **settings
) -> ControllerRuntime:
    return ControllerRuntime(
        ControllerConfig(**settings),
        TrainConfig(lr=1.0, warmup_ratio=0.1),
        steps,
        initial_state(ObjectiveConfig(), sources, CPU),
        base,
    )


def statistics(
    *p_of_source: list[float], tokens: int = 1000, base: list[tuple[float, float]] | None = None
) -> StepStatistics:
    """Statistics in which each source has `tokens` tokens in each of the given p. base: per source (NLL of tokens with base p < .2,
    NLL of those with p > .5), half of the tokens each."""
    found = StepStatistics(len(p_of_source), CPU)
    for source, values in enumerate(p_of_source):
        p = torch.tensor(values, dtype=torch.float64)
        count = len(values) * tokens
        row = found.table[source]

        def put(row: Tensor, name: str, value: float) -> None:
            row[COLUMNS.index(name)] = value

        put(row, "tokens", count)
        for name, value in (
            ("p", p),
            ("nll", -p.log()),
            ("weight", p),
            ("top1", p > 0.4),
            ("collision", p),
            ("collision_top1", p * (p > 0.4)),
            ("entropy", p),
        ):
            put(row, name, float(value.double().sum()) * tokens)
        for name, mask in (
            ("below_0.2", p < 0.2),
            ("above_0.5", p > 0.5),
            ("above_0.55", p > 0.55),
        ):
            put(row, name, float(mask.sum()) * tokens)
        put(row, "sequences", 10)
        cells = bin_index(p.logit(), LOGIT_RANGE, BINS)
        row[len(COLUMNS) : len(COLUMNS) + BINS] += torch.bincount(cells, minlength=BINS) * tokens
        cell = bin_index((-p.log()).mean().log()[None], LOG_NLL_RANGE, BINS)
        row[len(COLUMNS) + BINS + int(cell)] += 10
        if base is not None:
            for name, nll in zip(("base_low", "base_high"), base[source], strict=True):
                put(row, name, count / 2)
                put(row, f"{name}_nll", nll * count / 2)
    return found


def trajectory(
    steered: ControllerRuntime, each: list[StepStatistics], field: str = "alpha"
) -> list[list[float]]:
    """The value of every step, [step][source], where step t leaves each[t]."""
    control = steered.first
    values = [getattr(control, field).tolist()]
    for done, seen in enumerate(each, start=1):
        control = steered.advance(control, seen, KEEP, done)
        values.append(getattr(control, field).tolist())
    return values


def alone(values: list[list[float]]) -> list[float]:
    return [value for (value,) in values]


def scheduled(**settings) -> list[float]:
    field = settings.get("parameter", "alpha")
    return alone(trajectory(steering(**settings), [statistics([0.5])] * (STEPS - 1), field))


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


def test_piecewise_goes_through_its_points_and_lr_follows_the_learning_rate():
    values = scheduled(name="piecewise", points=[[0.2, 0.1], [0.6, 0.1], [0.8, 2.0]])
    assert values[0] == values[50] == pytest.approx(0.1)
    assert values[69] == pytest.approx(0.1 + 1.9 * (69 / 99 - 0.6) / 0.2, abs=1e-6)
    assert values[-1] == pytest.approx(2.0)
    values = scheduled(name="lr", start=0.0, end=1.0)  # warm-up of 10 steps, then a cosine to 0
    assert set(values[:11]) == {0.0}
    assert values[55] == pytest.approx(0.5)
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_fixed_keeps_the_configured_values_and_has_no_state():
    steered = steering(name="fixed")
    assert steered.memory == {}
    assert alone(trajectory(steered, [statistics([0.5])] * 3)) == [0.0] * 4


@pytest.mark.parametrize("name", CLOSED)
def test_an_update_is_pure_finite_and_follows_from_state_and_statistics_alone(name):
    steered = steering(2, name=name)
    controller = build(steered.config)
    state = {key: value for key, value in steered.memory.items() if key != "seen_tokens"}
    control = steered.first
    for done in range(1, 40):
        found = statistics(
            [0.01, 0.3 + done / 100, 0.9],
            [1e-4, 0.05, done / 50],
            base=[(3.0 - done / 40, 0.1), (9.0, 0.3)],
        )
        before = {key: value.clone() for key, value in state.items()}
        moment = Progress(done, STEPS, 1.0, False)
        once, twice = (
            controller.update(state, found.signals(), moment),
            controller.update(state, found.signals(), moment),
        )
        assert all(
            torch.equal(
                state[key],
                before[key],
            )
            or before[key].isnan().any()
            for key in state
        ), "the state was changed in place"
        assert once.keys() == state.keys()
        assert all(
            torch.equal(once[key].nan_to_num(-1.0), twice[key].nan_to_num(-1.0)) for key in once
        )
        control = steered.advance(control, found, KEEP, done)
        state = once
        moved = getattr(control, controller.moves[0])
        assert moved.isfinite().all()
        assert (moved >= 0).all()


@pytest.mark.parametrize("name", CLOSED)
def test_a_step_that_was_skipped_or_held_no_token_of_a_source_does_not_steer(name):
    steered = steering(2, name=name)
    control = steered.first
    for done in range(1, 20):
        control = steered.advance(control, statistics([0.3, 0.9], [0.01, 0.2]), KEEP, done)
    memory = {key: value.clone() for key, value in steered.memory.items()}
    broken = statistics([0.5], [0.5])
    broken.table.fill_(float("nan"))
    after = steered.advance(control, broken, torch.tensor(1.0), 20)
    assert all(torch.equal(a, b) for a, b in zip(after, control, strict=True))
    steered.advance(control, statistics([0.3, 0.9], []), KEEP, 20)
    for key, value in steered.memory.items():
        if not isinstance(build(steered.config), Schedule):
            assert torch.equal(value[1].nan_to_num(-1.0), memory[key][1].nan_to_num(-1.0)), key


@pytest.mark.parametrize("name", ["anchored_concentration", "half_gate", "majority"])
def test_a_source_first_seen_after_the_window_is_measured_then(name):
    """Not taken for one of which p = 0 or an NLL of 0 was measured. Majority: h > .5, so it starts at 1."""
    other, late = [0.6, 0.9], [0.6, 0.9, 0.7] if name == "majority" else [0.01, 0.02]
    absent = statistics(other, [0.5])
    absent.table[1].zero_()
    values = trajectory(
        steering(2, name=name, shrinkage=0.0), [absent] * 10 + [statistics(other, late)] * 5
    )
    early = trajectory(steering(2, name=name, shrinkage=0.0), [statistics(other, late)] * 15)
    assert values[11][1] == pytest.approx(early[11][1])


@pytest.mark.parametrize("name", ["half_gate", "majority"])
@pytest.mark.parametrize(("steps", "window"), [(100, 0.05), (201, 0.03), (21, 0.15)])
def test_what_was_measured_takes_effect_whatever_becomes_of_the_step_that_ends_the_window(
    name, steps, window
):
    """Skipped or not, and also where (k + 1) / n - 1 / n is rounded up from k / n."""
    seen, ends = (
        statistics([0.9, 0.95]),
        math.floor(window * (steps - 1) + 1e-9) + 1,
    )  # the first step after the window
    for skipped in (False, True):
        steered = steering(name=name, steps=steps, params={"window": window})
        control = steered.first
        for done in range(1, ends + 2):
            control = steered.advance(
                control, seen, torch.tensor(float(skipped and done == ends)), done
            )
        assert float(control.alpha) == pytest.approx(1.0 if name == "majority" else 3.0)


@pytest.mark.parametrize("name", CLOSED)
def test_one_source_gets_what_two_halves_of_it_get_together(name):
    """The row of all sources together sees the same tokens however they are labelled."""
    one, two = steering(1, name=name), steering(2, name=name)
    control_one, control_two = one.first, two.first
    for done in range(1, 30):
        p, q = [0.01, 0.3 + done / 100], [0.9, 0.05]
        control_one = one.advance(
            control_one, statistics(p + q, tokens=500, base=[(2.0, 0.2)]), KEEP, done
        )
        halves = statistics(p, q, tokens=500, base=[(2.0, 0.2), (2.0, 0.2)])
        control_two = two.advance(control_two, halves, KEEP, done)
    for key, value in one.memory.items():
        if (
            key != "sequence_nll" and name != "half_gate"
        ):  # the median of two medians is not the median
            torch.testing.assert_close(value[-1], two.memory[key][-1], equal_nan=True)


def test_a_source_with_few_tokens_follows_the_others():
    strong, weak = [0.9] * 9, [0.001]
    values = {}
    for shrinkage in (0.0, 1e9):
        steered = steering(2, name="anchored_concentration", shrinkage=shrinkage)
        values[shrinkage] = trajectory(steered, [statistics(strong, weak, tokens=10)] * 20)[-1]
    assert values[0.0] == pytest.approx([2.0, 0.1])
    assert values[1e9] == pytest.approx([2.0, 2.0], rel=1e-3)  # nine tenths of all tokens are known


def test_anchored_concentration_is_deft_until_it_knows_the_base_and_frozen_then():
    known, unknown = statistics([0.9, 0.9, 0.95, 0.1]), statistics([0.01, 0.02, 0.05, 0.9])
    values = alone(
        trajectory(steering(name="anchored_concentration"), [known] * 10 + [unknown] * 50)
    )
    assert set(values[:5]) == {1.0}
    assert set(values[6:]) == {2.0}
    values = alone(
        trajectory(steering(name="anchored_concentration"), [unknown] * 10 + [known] * 50)
    )
    assert values[-1] == pytest.approx(2.0 - 1.9 * (0.75 - 0.3) / 0.5)


def test_half_gate_takes_the_median_of_the_base_and_rises_slowly():
    nll = 2.0
    flat = statistics([math.exp(-nll)])
    values = alone(trajectory(steering(name="half_gate"), [flat] * 30))
    assert values[0] == pytest.approx(0.05)
    assert values[10] == pytest.approx(1 / nll, rel=0.03)
    learned = statistics([math.exp(-0.2)])
    values = alone(trajectory(steering(name="half_gate"), [flat] * 10 + [learned] * 50))
    steps = [b - a for a, b in itertools.pairwise(values[10:])]
    assert max(steps) <= 0.02 + 1e-6
    assert values[-1] > 1.0


def test_retained_mass_keeps_the_asked_share_of_the_gradient():
    p = 0.01
    values = alone(trajectory(steering(name="retained_mass"), [statistics([p])] * 60))
    assert values[-1] == pytest.approx(math.log(0.3) / math.log(p), abs=0.02)
    assert max(b - a for a, b in itertools.pairwise(values)) <= 0.02 + 1e-6
    bimodal = alone(
        trajectory(steering(name="retained_mass"), [statistics([0.5] * 9 + [1e-5])] * 90)
    )
    assert bimodal[-1] > 0.8


def test_learnability_tells_noise_from_news_by_whether_it_improves():
    same = [statistics([0.1, 0.6], base=[(3.0, 0.4)])] * 60
    falling = [statistics([0.1, 0.6], base=[(6.0 * 0.97**t, 0.4)]) for t in range(60)]
    noise, news = (
        alone(trajectory(steering(name="learnability"), each))[-1] for each in (same, falling)
    )
    assert noise == pytest.approx(1.0)
    assert news == pytest.approx(0.05)
    damaged = [statistics([0.1, 0.6], base=[(3.0, 0.4 + t / 50)]) for t in range(60)]
    assert alone(trajectory(steering(name="learnability"), damaged))[-1] == pytest.approx(0.05)


def test_quantile_tracker_masks_nothing_of_a_weak_source_and_little_of_a_strong_one():
    strong, weak = [0.01] + [0.9] * 19, [0.01] * 19 + [0.9]
    lower = trajectory(
        steering(2, name="quantile_tracker", shrinkage=0.0),
        [statistics(strong, weak)] * 20,
        "lower",
    )[-1]
    assert lower[0] == pytest.approx(0.2)  # the cap: nine tenths lie far above
    assert lower[1] == 0.0


def test_learn_then_lean_waits_for_the_low_share_to_stop_falling():
    def unlearned(share: float) -> StepStatistics:
        low = round(100 * share)
        return statistics([0.05] * low + [0.9] * (100 - low), tokens=10)

    learning = [unlearned(max(0.9 - 0.02 * t, 0.3)) for t in range(40)]
    steered = steering(name="learn_then_lean", steps=400)
    values = alone(trajectory(steered, learning + [unlearned(0.3)] * 300))
    assert max(values[:60]) == 0.0
    measured = (
        sum(0.1 + 0.02 * t for t in range(20)) / 20
    )  # share with p > .5 in the first 5 % of the steps
    assert values[-1] == pytest.approx(0.5 + measured, abs=0.02)
    again = alone(trajectory(steered, [unlearned(min(0.3 + 0.02 * t, 0.9)) for t in range(40)]))
    assert again[-1] < values[-1] - 0.2


def test_majority_starts_by_what_the_base_agrees_with_and_ends_lifted():
    known, news = statistics([0.9, 0.9, 0.05]), statistics([0.9, 0.05, 0.05])
    for seen, start in ((known, 1.0), (news, 0.0)):
        values = alone(trajectory(steering(name="majority"), [seen] * (STEPS - 1)))
        assert set(values[:5]) == {0.0}
        assert values[6] == pytest.approx(
            min(start + 2 / 15, 1.0)
        )  # it rises at once: nothing is being learned
        assert values[85] == pytest.approx(1.0)


def test_auto_learns_leans_and_sharpens_at_the_same_shares_of_any_run():
    for steps in (100, 1_000, 10_000):
        steered, seen = steering(name="auto", steps=steps), statistics([0.9, 0.1])
        at = [round(share * (steps - 1)) for share in (0.1, 0.2, 0.35, 0.5, 0.8, 0.9, 1.0)]
        values = [float(steered.advance(steered.first, seen, KEEP, done).alpha) for done in at]
        assert values == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0, 1.5, 2.0], abs=0.05)


def test_the_control_after_the_last_step_is_that_of_the_last():
    """It is what the final evaluation reports the loss of, and what the last checkpoint holds."""
    seen = statistics([0.9, 0.95])
    values = alone(trajectory(steering(name="auto", steps=6), [seen] * 6))
    assert values[5] == values[6] == pytest.approx(2.0)


def test_auto_does_not_lean_on_a_source_that_the_labels_contradict():
    right, wrong = statistics([0.9], [0.9]), statistics([0.9], [0.9])
    wrong.column("p")[1] = (
        0.1 * wrong.column("tokens")[1]
    )  # sure (mean c .9) and contradicted (mean p .1)
    values = trajectory(steering(2, name="auto", shrinkage=0.0), [wrong] * 50 + [right] * 49)
    assert values[50] == pytest.approx([1.0, 0.0], abs=0.02)
    assert values[-1] == pytest.approx([2.0, 2.0])


def test_base_statistics_replace_the_first_steps():
    base = statistics([0.9, 0.9, 0.9, 0.1]).signals()
    assert steering(name="anchored_concentration", base=base).first.alpha.tolist() == [2.0]
    assert steering(name="majority", base=base).first.alpha.tolist() == [1.0]
    values = alone(
        trajectory(steering(name="anchored_concentration", base=base), [statistics([0.001])] * 20)
    )
    assert set(values) == {2.0}


def test_a_controller_registered_from_outside_is_configured_like_ours():
    from adaptsft.controllers.base import Controller, State, register

    @register("halfway")
    class Halfway(Controller):
        goal: float = 0.5

        def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
            return {"alpha": torch.zeros(rows, dtype=torch.float64, device=device)}

        def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
            return {"alpha": state["alpha"] + (self.goal - state["alpha"]) / 2}

    try:
        values = alone(
            trajectory(steering(name="halfway", params={"goal": 0.8}), [statistics([0.5])] * 3)
        )
        assert values == pytest.approx([0.0, 0.4, 0.6, 0.7])
        assert dataclasses.fields(Halfway)[0].default == 0.5
    finally:
        del REGISTRY["halfway"]


def test_documentation_is_current():
    page = (Path(__file__).parent.parent / "docs" / "controllers.md").read_text()
    assert describe_controllers() in page, (
        "paste the output of `python -m adaptsft.controllers.validation` into docs/controllers.md"
    )
