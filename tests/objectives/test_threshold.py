"""Which tokens masks keep."""

import torch

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from tests.objectives.tokens import state_of, tokens_of


def test_threshold_follows_each_tokens_own_bounds() -> None:
    p = torch.tensor([0.1, 0.3, 0.6, 0.3, 0.6, 0.95])
    state = state_of(6)._replace(
        lower=torch.tensor([0.0, 0.2, 0.2, 0.5, 0.5, 0.0]),
        upper=torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.9]),
    )
    objective, tokens = (
        build_objective(ObjectiveConfig(name="threshold", base="neg_p", lower=0.2)),
        tokens_of(p.log(), 1 - p),
    )
    loss, weight = objective(tokens, state)
    kept = torch.tensor([True, True, False, False, True, False])
    assert torch.equal(objective.keep(tokens, state), kept)
    torch.testing.assert_close(weight, torch.where(kept, p, 0.0))
    torch.testing.assert_close(loss, torch.where(kept, -p, 0.0))


def test_what_is_kept() -> None:
    p = torch.tensor([0.05, 0.3, 0.6])
    tokens, state = tokens_of(p.log(), 1 - p), state_of(3, lower=0.1, upper=0.5)
    kept = {
        name: objective.keep(tokens, state, tokens.reference).tolist()
        for name, objective in {
            n: build_objective(ObjectiveConfig(name=n)) for n in REGISTRY
        }.items()
    }
    assert kept.pop("gce") == [False, False, True] and kept.pop("profit") == [False, True, True]
    assert all(value == [True, True, True] for value in kept.values())

    p = torch.tensor([0.05, 0.3, 0.6, 0.8])
    both = build_objective(
        ObjectiveConfig(name="threshold", base="gce", lower=0.1, params={"k": 0.4})
    )
    assert both.keep(tokens_of(p.log(), 1 - p), state_of(4, lower=0.1, upper=0.7)).tolist() == [
        False,
        False,
        True,
        False,
    ]
