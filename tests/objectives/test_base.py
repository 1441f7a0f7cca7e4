"""Objectives of a user's own: what `register` accepts and refuses."""

import pytest
import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.errors import ConfigError
from adaptsft.objectives.__main__ import describe_objectives
from adaptsft.objectives.arguments import with_weight
from adaptsft.objectives.base import register
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics, linear_objective
from tests.objectives.tokens import state_of, tokens_at, tokens_of


def test_an_objective_registered_from_outside() -> None:
    @register("square", uses=["alpha"], bounds={"scale": (0.0, 10.0)})
    def square(
        tokens: TokenStatistics, state: ObjectiveState, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """loss: scale (1-p)^2
        weight: 2 scale p (1-p)
        """
        m = tokens.one_minus_p
        return scale * m**2, 2 * scale * tokens.logp.exp() * m

    objective = build_objective(ObjectiveConfig(name="square", alpha=1.0, params={"scale": 2}))
    loss, weight = objective(tokens_at(["0.25"]), state_of(1))
    assert loss.item() == pytest.approx(2 * 0.75**2)
    assert weight.item() == pytest.approx(4 * 0.25 * 0.75)
    masked = build_objective(ObjectiveConfig(name="threshold", base="square"))
    assert masked.uses == {"alpha", "lower", "upper"}
    assert "| scale (1-p)^2 " in describe_objectives() and "| scale=1 " in describe_objectives()
    with pytest.raises(ValueError, match="square is registered already"):
        register("square")(square)
    with pytest.raises(ConfigError, match=r"params\.scale=11"):
        build_objective(ObjectiveConfig(name="square", params={"scale": 11}))


# name, parameters, and the same function of log p alone
OF_LOGP = [
    ("nll", {}, lambda logp: -logp),
    ("neg_p", {}, lambda logp: -logp.exp()),
    ("neg_p_k", {"k": 3.0}, lambda logp, *, k: -torch.exp(k * logp)),
    ("alpha", {}, lambda logp: -torch.expm1(0.5 * logp) / 0.5),
    ("focal", {"gamma": 3.0}, lambda logp, *, gamma: -((-torch.expm1(logp)) ** gamma) * logp),
    ("sce", {"a": 0.3, "b": 2.0}, lambda logp, *, a, b: -a * logp - 4.0 * b * torch.expm1(logp)),
    ("poly1", {"epsilon": 2.0}, lambda logp, *, epsilon: -logp - epsilon * torch.expm1(logp)),
]


@pytest.mark.parametrize(("name", "parameters", "function"), OF_LOGP, ids=lambda x: str(x)[:9])
def test_a_function_of_log_p_has_the_weight_of_the_one_written_by_hand(name, parameters, function):
    """At 1,000 random p from 1e-9 to 1 - 1e-4."""
    generator = torch.Generator().manual_seed(0)
    odds = -20.7 + 29.9 * torch.rand(1000, generator=generator, dtype=torch.float64)
    tokens = tokens_of(torch.nn.functional.logsigmoid(odds), torch.sigmoid(-odds))
    state = state_of(1000, alpha=0.5)
    expected = build_objective(ObjectiveConfig(name=name, params=parameters))(tokens, state)
    loss, weight = with_weight(function, ("logp",))(tokens, state, **parameters)
    assert not loss.requires_grad and not weight.requires_grad
    torch.testing.assert_close(loss, expected[0], rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(weight, expected[1], rtol=1e-11, atol=1e-14)


def test_a_function_of_log_p_is_registered_like_any_other() -> None:
    @register("root", bounds={"scale": (0.0, 10.0)})
    def root(logp: Tensor, *, scale: float = 2.0) -> Tensor:
        """loss: scale (1 - sqrt p)"""
        return -scale * torch.expm1(logp / 2)

    assert root(torch.zeros(1)).item() == 0.0  # it stays the function that it is
    assert "| scale (1 - sqrt p) " in describe_objectives()
    with pytest.raises(ConfigError, match=r"params\.scal is no parameter of root.*scale"):
        build_objective(ObjectiveConfig(name="root", params={"scal": 1.0}))
    masked = build_objective(ObjectiveConfig(name="threshold", base="root", lower=0.5))
    loss, weight = masked(tokens_at(["0.25", "0.64"]), state_of(2, lower=0.5))
    assert loss.tolist() == pytest.approx([0.0, 0.4]) and weight.tolist() == [0.0, 0.8]

    # through the loss of the head, where autograd is off
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 8, generator=generator) for n in (5, 11))
    targets, gradients = torch.arange(5), []
    alpha = build_objective(ObjectiveConfig(name="alpha"))
    for objective, factor in ((build_objective(ObjectiveConfig(name="root")), 1.0), (alpha, 1.0)):
        head.grad = None
        head.requires_grad_()
        total, _ = linear_objective(
            hidden, head, targets, objective, state_of(1, torch.float32, alpha=0.5)
        )
        (factor * total).backward()
        gradients.append(head.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def loss_of(tokens: TokenStatistics, state: ObjectiveState, *, power: float = 1.0):
    raise AssertionError("never called")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"uses": ["alfa"]}, ["uses=alfa", "did you mean alpha?"]),
        ({"needs": ["top_entropyy"]}, ["needs=top_entropyy", "did you mean top_entropy?"]),
        ({"bounds": {"powr": (0, 1)}}, ["bounds of powr", "did you mean power?"]),
    ],
)
def test_what_is_misspelt_is_refused_at_registration(options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match="objective misspelt") as error:
        register("misspelt", **options)(loss_of)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ConfigError, match="misspelt is unknown"):
        build_objective(ObjectiveConfig(name="misspelt"))


def test_what_is_read_by_name_is_not_declared_as_well() -> None:
    with pytest.raises(ValueError, match=r"follows from the names.*leave uses and needs out"):
        register("alone", uses=["alpha"])(lambda logp: -logp)
