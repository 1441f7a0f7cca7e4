"""short_steps scales the learning rate by what the weights keep, and leaves the objective alone."""

import pytest

from adaptsft.config.schema import ControllerConfig
from adaptsft.controllers.build import acts_through
from adaptsft.statistics.step import COLUMNS
from adaptsft.train import train
from tests.controllers.steps import KNOWN, NEW, TAKEN, adaptive, lr_scales, progress, statistics
from tests.runs import metrics_of, small_config


@pytest.mark.parametrize("p", [KNOWN, NEW], ids=["known", "new"])
def test_the_scale_is_the_share_of_the_gradient_that_the_weights_keep(p):
    """The weights of these statistics are p: K = E[p (1 - p)] is kept of E[1 - p]."""
    kept = sum(each * (1 - each) for each in p) / sum(1 - each for each in p)
    assert lr_scales("short_steps", statistics(p)) == pytest.approx([kept] * 29, rel=1e-6)


def test_k_and_l_are_running_means():
    """Over 3 steps of 100: after the model has learned, the scale follows."""
    objective = adaptive(name="short_steps")
    scales = []
    for done in range(1, 30):
        objective.update(statistics(NEW if done < 10 else KNOWN), TAKEN, progress(done))
        scales.append(float(objective.lr_scale))
    assert 1.1 * scales[8] < scales[9] < scales[11] < 0.99 * scales[-1]


def test_sources_count_by_the_gradient_that_they_keep():
    """p is .5 and .9, K .25 and .09 per token, of which the second has four times as many."""
    seen = statistics([0.5], [0.9])
    seen.table[1] *= 4
    kept = {0.5: 0.25, 0.9: 4 * 0.09}
    mean = sum(p * k for p, k in kept.items()) / sum(kept.values())  # K / (K + L) is p
    assert lr_scales("short_steps", seen)[-1] == pytest.approx(mean)


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 1.0), (3.0, 1.0), (-1.0, 0.0)])
def test_nll_and_weights_beyond_0_and_1_give_a_scale_within_them(factor, scale):
    seen = statistics(KNOWN)
    error = seen.table[:, COLUMNS.index("tokens")] - seen.table[:, COLUMNS.index("p")]
    seen.table[:, COLUMNS.index("pull")] = factor * error
    assert lr_scales("short_steps", seen) == [scale] * 29


def test_the_objective_is_the_one_configured_or_neg_p():
    objective = adaptive(name="short_steps")
    alpha, lower, upper = (value.tolist() for value in objective.state[:3])
    objective.update(statistics(KNOWN), TAKEN, progress(1))
    assert [value.tolist() for value in objective.state[:3]] == [alpha, lower, upper]
    assert acts_through(ControllerConfig(name="short_steps")) == "neg_p"


def test_the_trainer_takes_the_shorter_steps(tmp_path, tiny_model):
    model, rows = tiny_model("llama"), {}
    for name in ("fixed", "short_steps"):
        config = small_config(tmp_path, model, name, objective__name="neg_p", controller__name=name)
        train(config)
        rows[name] = metrics_of(config)
    scales = [row["lr_scale"] for row in rows["short_steps"]]
    assert scales[0] == 1.0
    assert all(0 < scale < 0.1 for scale in scales[1:])  # a random model gives no target much p
    assert rows["short_steps"][1]["loss"] == rows["fixed"][1]["loss"]
    assert rows["short_steps"][2]["loss"] != rows["fixed"][2]["loss"]
