"""Controllers as a user configures and registers them."""

import pytest
import torch

from adaptsft.controllers.base import Controller, Progress, State, register
from adaptsft.controllers.validate import describe_controllers
from adaptsft.statistics.step import SourceStatistics
from tests.conftest import REPO
from tests.controllers.steps import adaptive, alone, statistics, trajectory


def test_a_controller_registered_from_outside_is_configured_like_ours():
    @register("halfway")
    class Halfway(Controller):
        goal: float = 0.5

        def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
            return {"alpha": torch.zeros(rows, dtype=torch.float64, device=device)}

        def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
            return {"alpha": state["alpha"] + (self.goal - state["alpha"]) / 2}

    objective = adaptive(name="halfway", params={"goal": 0.8})
    values = alone(trajectory(objective, [statistics([0.5])] * 3))
    assert values == pytest.approx([0.0, 0.4, 0.6, 0.7])
    assert Halfway().goal == 0.5


def test_documentation_is_current():
    page = (REPO / "docs" / "controllers.md").read_text()
    assert describe_controllers() in page, (
        "paste the output of `python -m adaptsft.controllers` into docs/controllers.md"
    )
