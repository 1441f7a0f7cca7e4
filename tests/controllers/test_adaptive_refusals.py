"""What AdaptiveObjective refuses: settings that cannot be, and statistics that nobody gave."""

import pytest
import torch

from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.controllers.base import REGISTRY as CONTROLLERS, Controller, register
from adaptsft.errors import ConfigError


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"objective": "autoo"}, "objective autoo is unknown; did you mean auto"),
        ({"objective": "auto", "total_steps": None}, "give the number of optimizer steps"),
        (
            {"objective": {"name": "alpha", "alhpa": 1}},
            r"unknown key objective\.alhpa; did you mean",
        ),
        ({"objective": {"name": "alpha", "alpha": -1}}, "must lie in"),
        ({"objective": {"name": "neg_p", "exempt": "eos"}}, r"ids of these tokens, exempt="),
        ({"objective": {"name": "neg_p", "normalizer": "kept"}}, "num_tokens="),
        ({"controller": {"name": "auto", "base_stats": "x"}}, "leave it out"),
        ({"controller": {"name": "auto", "params": {"ent": 1}}}, "did you mean end"),
        ({"objective": "nll", "controller": "linear"}, "does not read"),
        ({"sources": 0}, "at least one"),
        ({"objective": lambda logp, entropie: logp}, "did you mean entropy"),
        ({"objective": lambda logp: logp / 0.0}, "not finite"),
        ({"objective": "no_such_module:fn"}, "no module no_such_module"),
    ],
)
def test_what_cannot_be_is_refused(named, said):
    with pytest.raises(ConfigError, match=said):
        AdaptiveObjective(**{"total_steps": 5, "device": "cpu"} | named)


def test_a_statistic_that_was_not_given_is_missed_where_it_is_read():
    logps = torch.rand(4, 5).log().requires_grad_()
    with pytest.raises(ValueError, match="give collision="):
        AdaptiveObjective("deft", device="cpu").loss_from_logps(logps)
    with pytest.raises(ValueError, match="give sequence="):
        AdaptiveObjective("talr", device="cpu").loss_from_logps(logps.flatten())
    with pytest.raises(ValueError, match="give reference="):
        AdaptiveObjective("prift_prob", device="cpu").loss_from_logps(logps)
    with pytest.raises(ValueError, match="give targets="):
        AdaptiveObjective("neg_p", exempt=[3], device="cpu").loss_from_logps(logps)

    @register("of_collision")
    class OfCollision(Controller):
        def update(self, state, statistics, progress):
            return {"alpha": 1 - statistics.collision}

    try:
        objective = AdaptiveObjective("of_collision", total_steps=5, device="cpu")
        objective.loss_from_logps(logps, collision=torch.full_like(logps, 0.25))
        objective.step()
        assert objective.state.alpha.tolist() == [0.75]
        objective.loss_from_logps(logps)
        with pytest.raises(ValueError, match="give collision="):
            objective.step()
    finally:
        del CONTROLLERS["of_collision"]
