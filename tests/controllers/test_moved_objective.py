"""Controllers are pure, their state is exact, and no step that was not finite moves it."""

import pytest
import torch

from adaptsft.controllers.base import REGISTRY, Controller, Progress, register
from tests.controllers.steps import (
    SKIPPED,
    STEPS,
    TAKEN,
    adaptive,
    alone,
    progress,
    statistics,
    trajectory,
)

CLOSED = ["auto", "short_steps", "remembering"]
EVERY = [*CLOSED, "linear"]
pytestmark = pytest.mark.usefixtures("remembering")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, NaN beside NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def test_fixed_keeps_the_configured_values_and_has_no_memory():
    objective = adaptive(name="fixed")
    assert objective.memory == {}
    assert alone(trajectory(objective, [statistics([0.5])] * 3)) == [0.0] * 4


@pytest.mark.parametrize("name", EVERY)
def test_an_update_is_pure_finite_and_follows_from_memory_and_statistics_alone(name):
    objective = adaptive(2, name=name)
    controller = objective.controller
    memory = {key: value for key, value in objective.memory.items() if key != "seen_tokens"}
    for done in range(1, 40):
        found = statistics([0.01, 0.3 + done / 100, 0.9], [1e-4, 0.05, done / 50])
        before = {key: value.clone() for key, value in memory.items()}
        at = Progress(done, STEPS, 1.0, False)
        once, twice = (controller.update(memory, found.per_source(), at) for _ in range(2))
        assert all(same(memory[key], before[key]) for key in memory), "changed in place"
        assert once.keys() == memory.keys()
        assert all(same(once[key], twice[key]) for key in once)
        objective.update(found, TAKEN, at)
        memory = once
        assert objective.state.alpha.isfinite().all()
        assert (objective.state.alpha >= 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_step_that_was_skipped_or_held_no_token_of_a_source_moves_nothing(name):
    objective = adaptive(2, name=name)
    for done in range(1, 20):
        objective.update(statistics([0.3, 0.9], [0.01, 0.2]), TAKEN, progress(done))
    broken = statistics([0.5], [0.5])
    broken.table.fill_(float("nan"))
    if name in CLOSED:
        state, memory = objective.state, {k: v.clone() for k, v in objective.memory.items()}
        objective.update(broken, SKIPPED, progress(20))
        assert all(torch.equal(a, b) for a, b in zip(objective.state, state, strict=True))
        assert all(same(value, memory[key]) for key, value in objective.memory.items())
        objective.update(statistics([0.3, 0.9], []), TAKEN, progress(20))
        assert all(same(value[1], memory[key][1]) for key, value in objective.memory.items())
    else:  # a function of the step moves on
        objective.update(broken, SKIPPED, progress(20))
        assert objective.state.alpha.tolist() == pytest.approx([20 / 99] * 2)
    assert objective.state.alpha.isfinite().all()


@pytest.mark.parametrize("name", CLOSED)
def test_one_source_gets_what_two_halves_of_it_get_together(name):
    """The entry of all sources together sees the same tokens whatever their sources are called."""
    one, two = adaptive(1, name=name), adaptive(2, name=name)
    for done in range(1, 30):
        p, q = [0.01, 0.3 + done / 100], [0.9, 0.05]
        one.update(statistics(p + q, tokens=500), TAKEN, progress(done))
        two.update(statistics(p, q, tokens=500), TAKEN, progress(done))
    for key, value in one.memory.items():
        if key != "lr_scale":  # the one thing that is made of the sources' own values
            torch.testing.assert_close(value[-1], two.memory[key][-1], equal_nan=True)


def test_a_source_with_few_tokens_follows_the_others():
    likely, unlikely = [0.9] * 9, [0.001]
    values = {}
    for shrinkage in (0.0, 1e9):
        objective = adaptive(2, name="remembering", shrinkage=shrinkage, params={"decay": 0.0})
        each = [statistics(likely, unlikely, tokens=10)] * 20
        values[shrinkage] = trajectory(objective, each)[-1]
    assert values[0.0] == pytest.approx([0.0, 1.0])
    assert values[1e9] == pytest.approx([0.1, 0.1], rel=1e-3)  # a tenth of all tokens is unlikely


def test_base_statistics_are_what_a_controller_starts_from():
    """Their tokens are seen: a source is drawn towards the others by few of them alone."""
    base = statistics([0.9, 0.9, 0.9, 0.1], [0.9])
    objective = adaptive(2, name="remembering", shrinkage=1_000, base=base)
    assert objective.state.alpha.tolist() == pytest.approx([0.8 * 0.25 + 0.2 * 0.2, 0.5 * 0.2])


def test_a_controller_that_scales_the_learning_rate_must_have_a_scale():
    @register("forgetful")
    class Forgetful(Controller):
        scales_lr = True

    with pytest.raises(ValueError, match=r"forgetful.*lr_scale"):
        adaptive(name="forgetful")
    del REGISTRY["forgetful"]


@pytest.mark.parametrize("name", EVERY)
def test_saved_and_loaded_tensors_continue_to_the_bit(name):
    """`tensors` is all that a checkpoint holds of an objective, and it is loaded in place."""
    found = [statistics([0.01, 0.3 + done / 100], [0.9, done / 50]) for done in range(1, 20)]
    whole, first, resumed = (adaptive(2, name=name) for _ in range(3))
    trajectory(whole, found)
    trajectory(first, found[:9])
    for key, value in resumed.tensors().items():
        value.copy_(first.tensors()[key])
    for done in range(10, 20):
        resumed.update(found[done - 1], TAKEN, progress(done))
    for key, value in whole.tensors().items():
        assert same(value, resumed.tensors()[key]), key


def test_a_controller_without_an_initial_state_starts_at_nll():
    class Still(Controller):
        moves = ("alpha", "lower", "upper")

    state = Still().initial_state(3, torch.device("cpu"), None)
    assert {name: value.tolist() for name, value in state.items()} == {
        "alpha": [0.0] * 3,
        "lower": [0.0] * 3,
        "upper": [1.0] * 3,
    }
