"""Controllers as a user configures and registers them."""

import math
import re
import runpy
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import ControllerConfig
from adaptsft.controllers.__main__ import describe_controllers
from adaptsft.controllers.base import Controller, Progress, State, register
from adaptsft.controllers.build import build_controller
from adaptsft.controllers.schedules import Schedule
from adaptsft.controllers.trial import try_out
from adaptsft.errors import ConfigError, warn
from adaptsft.statistics.step import SourceStatistics
from tests.conftest import REPO
from tests.controllers.steps import STEPS, adaptive, alone, statistics, trajectory


def test_a_controller_registered_from_outside_is_configured_like_ours():
    @register("halfway")
    class Halfway(Controller):
        goal: float = 0.5

        def initial_state(
            self, size: int, device: torch.device, base: SourceStatistics | None
        ) -> State:
            return {"alpha": torch.zeros(size, dtype=torch.float64, device=device)}

        def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
            return {"alpha": state["alpha"] + (self.goal - state["alpha"]) / 2}

    objective = adaptive(name="halfway", params={"goal": 0.8})
    values = alone(trajectory(objective, [statistics([0.5])] * 3))
    assert values == pytest.approx([0.0, 0.4, 0.6, 0.7])
    assert Halfway().goal == 0.5


BASE = ["run_dir=r", "model.path=m", "data.path=d.jsonl"]


def test_a_schedule_registered_from_outside_is_configured_like_ours(capsys):
    @register("steps")
    class Steps(Schedule):
        """shape = the share that is over, in `count` equal steps."""

        bounds: ClassVar = {"count": (1.0, math.inf)}
        count: float = 4.0

        def shape(self, progress: Progress) -> float:
            return math.floor(self.elapsed(progress) * self.count) / self.count

    keys = ["objective.name=alpha", "controller.name=steps", "controller.start=1"]
    config = load_config([*BASE, *keys, "controller.end=3", "controller.params.count=2"])
    objective = adaptive(**vars(config.controller))
    values = alone(trajectory(objective, [statistics([0.5])] * (STEPS - 1)))
    assert values == [1.0] * 50 + [2.0] * 49 + [3.0]
    assert "| steps | shape = the share that is over" in describe_controllers()
    with pytest.raises(ConfigError, match=r"params\.count=0\.5: must lie in \[1, inf\]"):
        load_config([*BASE, *keys, "controller.params.count=0.5"])
    warn.cache_clear()
    load_config([*BASE, *keys, "controller.points=[[0, 1]]"])
    expected = "controller.points=[[0.0, 1.0]] has no effect with controller.name=steps; it is read"
    assert expected in capsys.readouterr().err


def test_parameters_have_the_range_that_their_class_declares():
    """Not one by their names: share, q and decay may be any finite number by default."""

    @register("free")
    class Free(Controller):
        share: float = 0.5
        q: float = 0.5
        decay: float = 0.5

    @register("bound")
    class Bound(Controller):
        bounds: ClassVar = {"share": (-1.0, 3.0)}
        share: float = 0.5

    for key in ("share", "q", "decay"):
        for value in (-7.0, 12.5):
            config = load_config(
                [*BASE, "controller.name=free", f"controller.params.{key}={value}"]
            )
            assert config.controller.params == {key: value}
        with pytest.raises(ConfigError, match=f"params.{key}=inf"):
            load_config([*BASE, "controller.name=free", f"controller.params.{key}=.inf"])
    with pytest.raises(ConfigError, match=r"params\.share=-2\.0: must lie in \[-1, 3\]"):
        load_config([*BASE, "controller.name=bound", "controller.params.share=-2"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"moves": ("alfa",)}, ["moves=alfa", "did you mean alpha?"]),
        ({"moves": ("mean_p",)}, ["moves=mean_p", "choose one of: alpha, lower, upper"]),
        ({"bounds": {"rate": (0, 1)}}, ["bounds of rate"]),
        ({"reads": ("starts",)}, ["reads=starts", "did you mean start?"]),
    ],
)
def test_what_is_misspelt_is_refused_at_registration(fields, words):
    with pytest.raises(ValueError, match="controller misspelt") as error:
        register("misspelt")(type("Misspelt", (Controller,), fields))
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ConfigError, match="misspelt is unknown"):
        load_config([*BASE, "controller.name=misspelt"])


def test_a_name_is_registered_once():
    for name in ("auto", "fixed", "linear"):
        with pytest.raises(ValueError, match=f"{name} is registered already"):
            register(name)(type("Other", (Controller,), {}))


LINEAR = ["objective.name=alpha", "controller.name=linear"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["controller.name=auto", "controller.params.fal=1"], ["fal", "did you mean fall?"]),
        (["controller.name=auto", "controller.params.fall=1.5"], ["fall=1.5", "[0, 1]"]),
        (["controller.name=auto", "controller.params.fall=0.9"], ["fall < fallen"]),
        (["controller.name=auto", "controller.shrinkage=-1"], ["controller.shrinkage=-1"]),
        (["controller.name=auto", "objective.name=dft"], ["leave objective.name out"]),
        ([*LINEAR, "controller.params.rate=1"], ["rate is no parameter of linear", "none"]),
        ([*LINEAR, "controller.start=-1"], ["controller.start=-1", ">= 0"]),
        (
            [*LINEAR, "controller.parameter=floor", "controller.end=2"],
            ["controller.end=2", "floor must be in [0, 1]"],
        ),
        (
            ["objective.name=mixture", "controller.name=linear", "controller.parameter=floor"],
            ["moves floor", "use objective.name=alpha"],
        ),
        (
            [
                "objective.name=alpha",
                "controller.name=piecewise",
                "controller.points=[[1, 2], [0, 1]]",
            ],
            ["controller.points", "must rise"],
        ),
        (
            ["objective.name=alpha", "controller.name=piecewise", "controller.points=[[1]]"],
            ["controller.points", "pairs"],
        ),
        (
            [
                "objective.name=threshold",
                "objective.lower_quantile=0.1",
                "controller.name=linear",
                "controller.parameter=lower",
            ],
            ["objective.lower_quantile", "choose one"],
        ),
    ],
    ids=lambda x: str(x)[:60],
)
def test_what_cannot_work_is_refused(arguments, words):
    with pytest.raises(ConfigError) as error:
        load_config([*BASE, *arguments])
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("arguments", "setting", "readers"),
    [
        (["controller.end=0.5"], "controller.end=0.5", "linear, cosine, lr"),
        (
            ["controller.params.low=1"],
            "controller.params={'low': 1.0}",
            "auto, auto_rl, short_steps",
        ),
        (["controller.shrinkage=5"], "controller.shrinkage=5.0", "auto, auto_rl"),
        (
            ["controller.base_stats=b.json"],
            "controller.base_stats=b.json",
            "auto, auto_rl",
        ),
        ([*LINEAR, "controller.points=[[0, 1]]"], "controller.points=[[0.0, 1.0]]", "piecewise"),
        ([*LINEAR, "controller.shrinkage=5"], "controller.shrinkage=5.0", "auto, auto_rl"),
        (
            ["objective.name=alpha", "controller.name=lr", "controller.begin=0.1"],
            "controller.begin=0.1",
            "linear, cosine",
        ),
        (
            ["controller.name=short_steps", "controller.shrinkage=5"],
            "controller.shrinkage=5.0",
            "auto, auto_rl",
        ),
        (["controller.name=auto", "controller.start=1"], "controller.start=1.0", "linear"),
        (
            ["controller.name=auto", "controller.parameter=lower"],
            "controller.parameter=lower",
            "linear, cosine, lr, piecewise",
        ),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_setting_without_effect_is_warned_of(arguments, setting, readers, capsys):
    warn.cache_clear()
    config = load_config([*BASE, *arguments])
    (warning,) = capsys.readouterr().err.splitlines()
    name = f"controller.name={config.controller.name}"
    start = f"warning: {setting} has no effect with {name}; it is read by "
    assert warning.startswith(start + readers)


def test_ours_would_pass_as_ones_own():
    for name in ("auto", "auto_rl", "short_steps", "linear", "cosine", "lr"):
        controller = build_controller(ControllerConfig(name=name))
        try_out(name, controller, Path("ours.py"))


def test_documentation_is_current_and_its_examples_run(tmp_path):
    page = (REPO / "docs" / "controllers.md").read_text()
    assert describe_controllers() in page, "run: make docs"
    names = {}
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", page, re.DOTALL)):
        file = tmp_path / f"controllers_{number}.py"
        file.write_text(example)
        names |= {name: f"{file}:{name}" for name in re.findall(r"^class (\w+)", example, re.M)}
    each = [statistics([0.5])] * 20
    assert alone(trajectory(adaptive(name=names["RunningP"]), each))[-1] == pytest.approx(
        0.5 * (1 - 0.9**20)
    )
    assert alone(trajectory(adaptive(name=names["Steps"]), [each[0]] * 99))[50] == 0.5
    for name in names.values():
        load_config([*BASE, "objective.name=alpha", f"controller.name={name}"])


def test_the_module_prints_the_table(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "adaptsft.controllers.__main__")
    runpy.run_module("adaptsft.controllers", run_name="__main__")
    assert capsys.readouterr().out.strip() == describe_controllers()
