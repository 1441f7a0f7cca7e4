"""Objectives as a user configures them, and their documentation."""

import math
import re
import runpy
import sys

import pytest
import torch

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import ObjectiveConfig
from adaptsft.errors import ConfigError, warn
from adaptsft.objectives.__main__ import describe_objectives
from adaptsft.objectives.base import ON_REQUEST, REGISTRY
from adaptsft.objectives.build import build_objective
from tests.conftest import REPO
from tests.objectives.tokens import H, P, state_of, tokens_at


def test_declared_needs_and_uses_are_what_is_read() -> None:
    """Nothing changes where all else is not there."""
    tokens, state = tokens_at(P), state_of(len(P), alpha=0.5)
    for name in [*REGISTRY, "threshold"]:
        objective = build_objective(ObjectiveConfig(name=name))
        absent = {field: None for field in ON_REQUEST if field not in objective.needs}
        unknown = {field: x * torch.nan for field, x in state._asdict().items()}
        read = {field: getattr(state, field) for field in objective.uses}
        alone = tokens._replace(**absent), state._replace(**(unknown | read))
        for ours, all_else in zip(objective(*alone), objective(tokens, state), strict=True):
            torch.testing.assert_close(ours, all_else, rtol=0, atol=0, msg=name)
            assert ours.isfinite().all(), name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "focl"}, ["objective.name=focl", "did you mean focal", "neg_p_k"]),
        ({"name": "threshold", "base": "nil"}, ["objective.base=nil", "did you mean nll"]),
        ({"name": "threshold", "base": "threshold"}, ["objective.base=threshold"]),
        (
            {"name": "focal", "params": {"gama": 1.0}},
            ["objective.params.gama", "focal", "did you mean gamma"],
        ),
        ({"name": "nll", "params": {"k": 1.0}}, ["objective.params.k", "nll", "none"]),
        ({"name": "focal", "params": {"gamma": -1.0}}, ["objective.params.gamma=-1.0", "[0, 100]"]),
        (
            {"name": "threshold", "base": "gce", "params": {"q": float("nan")}},
            ["objective.params.q=nan"],
        ),
        ({"name": "alpha", "alpha": -0.5}, ["objective.alpha=-0.5"]),
        (
            {"name": "threshold", "lower": 0.6, "upper": 0.4},
            ["objective.lower=0.6", "objective.upper=0.4"],
        ),
        (
            {"name": "threshold", "lower_quantile": 0.6, "upper_quantile": 0.4},
            ["objective.lower_quantile=0.6", "objective.upper_quantile=0.4"],
        ),
        ({"name": "threshold", "lower": 1.2}, ["objective.lower=1.2", "[0, 1]"]),
        ({"name": "alpha", "floor": 1.5}, ["objective.floor=1.5", "[0, 1]"]),
        (
            {"name": "threshold", "lower": 0.2, "lower_quantile": 0.5},
            ["objective.lower and objective.lower_quantile"],
        ),
    ],
)
def test_what_cannot_work_is_refused(config: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_objective(ObjectiveConfig(**config))
    for word in words:
        assert word in str(error.value)


UNREAD = [
    (["objective.name=dft", "objective.base=neg_p"], "objective.base=neg_p", "threshold"),
    (["objective.lower=0.2"], "objective.lower=0.2", "soft_threshold, threshold"),
    (["objective.upper_quantile=0.2"], "objective.upper_quantile=0.2", "threshold"),
    (
        ["objective.name=neg_p", "objective.alpha=0.5"],
        "objective.alpha=0.5",
        "alpha, mixture, concentr",
    ),
    (["objective.name=mixture", "objective.floor=0.1"], "objective.floor=0.1", "alpha, concentr"),
    (
        ["objective.normalizer=kept"],
        "objective.normalizer=kept",
        "gce, profit, prift_mass, threshold",
    ),
    (["objective.unit_mass=true"], "objective.unit_mass=true", "every other objective"),
    (["objective.exempt=eos"], "objective.exempt=eos", "every other objective"),
]


@pytest.mark.parametrize(("arguments", "setting", "readers"), UNREAD, ids=lambda x: str(x)[:30])
def test_a_setting_without_effect_is_warned_of_once(arguments, setting, readers, capsys) -> None:
    warn.cache_clear()
    for _ in range(2):
        config = load_config(["run_dir=r", "model.path=m", "data.path=d.jsonl", *arguments])
    (warning,) = capsys.readouterr().err.splitlines()
    start = f"warning: {setting} has no effect with objective.name={config.objective.name}; "
    assert warning.startswith(f"{start}it is read by {readers}")


def test_what_has_an_effect_is_not_warned_of(capsys) -> None:
    warn.cache_clear()
    for settings in (
        ["name=alpha", "alpha=0.5", "floor=0.1", "unit_mass=true", "exempt=eos"],
        ["name=threshold", "base=neg_p", "lower=0.2", "upper_quantile=0.9", "normalizer=kept"],
        ["name=gce", "normalizer=kept"],
    ):
        arguments = [f"objective.{setting}" for setting in settings]
        load_config(["run_dir=r", "model.path=m", "data.path=d.jsonl", *arguments])
    assert capsys.readouterr().err == ""


def test_documentation_is_current_and_its_examples_run(tmp_path) -> None:
    text = (REPO / "docs" / "objectives.md").read_text()
    assert describe_objectives() in text, "run: make docs"
    tokens, state = tokens_at(P), state_of(len(P), alpha=0.5)
    p, one_minus_p = tokens.logp.exp(), tokens.one_minus_p
    focal = build_objective(ObjectiveConfig(name="focal", params={"gamma": 3.0}))
    expected = {
        "squared": ({}, one_minus_p**2, 2 * p * one_minus_p),
        "by_hand": ({"gamma": 3.0}, *focal(tokens, state)),
        "doubtful": ({"scale": 0.5}, None, p ** (0.5 * math.exp(-H / 0.5))),
        "centred": ({"power": 2.0}, None, p**2 / (p**2).mean()),
    }
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        file = tmp_path / f"objectives_{number}.py"
        file.write_text(example)
        for name in re.findall(r"^def (\w+)", example, re.MULTILINE):
            given, loss, weight = expected.pop(name)
            config = ObjectiveConfig(name=f"{file}:{name}", alpha=0.5, params=given)
            found = build_objective(config)(tokens, state)
            torch.testing.assert_close(found[1], weight)
            torch.testing.assert_close(found[0], -weight * tokens.logp if loss is None else loss)
    assert expected == {}, "a page that shows less"


def test_the_module_prints_the_table(capsys, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "adaptsft.objectives.__main__")
    runpy.run_module("adaptsft.objectives", run_name="__main__")
    assert capsys.readouterr().out.strip() == describe_objectives()
