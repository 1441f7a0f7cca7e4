"""Every objective against 50 digits and autograd, and at the ends of its range."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath as mp
import pytest
import torch

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.state import ObjectiveState
from tests.objectives.tokens import (
    BEYOND_CLAMP,
    C_0,
    H20,
    H20_0,
    MEAN_P,
    P_0,
    TAU,
    C,
    H,
    P,
    shipped,
    state_of,
    tokens_at,
    tokens_of,
)


class Case(NamedTuple):
    config: dict[str, Any]
    reference: Callable[[Any], Any]  # f(p) of a function; the weight w(p) of a weighted likelihood
    weighted: bool = False
    alpha: float = 0.0
    points: list[str] = P + BEYOND_CLAMP
    absolute: float = 0.0  # error of the weight, besides 1e-12 of it; for weights by autograd


def clip(x: Any, low: Any, high: Any) -> Any:
    return min(max(x, low), high)


def cayley(p: Any) -> Any:
    a0 = mp.mpf(MEAN_P) / 2
    return p ** clip(a0 + (1 - a0) * p / (2 - p), mp.mpf("0.001"), 1)


def idft(p: Any) -> Any:
    return p ** clip(mp.exp(-(mp.log(p) + H)), mp.mpf(0.1), 2)


CASES = [
    Case({"name": "nll"}, lambda p: -mp.log(p)),
    Case({"name": "alpha"}, lambda p: -mp.log(p)),
    *(
        Case({"name": "alpha"}, lambda p, a=a: (1 - p ** mp.mpf(a)) / a, alpha=a)
        for a in (0.01, 0.5, 1.0, 3.0, 10.0)
    ),
    Case({"name": "neg_p"}, lambda p: -p),
    Case({"name": "neg_p_k"}, lambda p: -(p**10)),
    Case({"name": "neg_p_k", "params": {"k": 2}}, lambda p: -(p**2)),
    Case({"name": "log1mp"}, lambda p: mp.log(1 - p), points=P),
    Case({"name": "focal"}, lambda p: -((1 - p) ** 2) * mp.log(p)),
    Case({"name": "focal", "params": {"gamma": 5}}, lambda p: -((1 - p) ** 5) * mp.log(p)),
    Case({"name": "huber"}, lambda p: (1 - p) ** 2 / 2 if 1 - p <= 0.5 else (1 - p - 0.25) / 2),
    Case({"name": "sce"}, lambda p: -mp.mpf(0.1) * mp.log(p) + 4 * (1 - p)),
    Case({"name": "poly1"}, lambda p: -mp.log(p) + (1 - p)),
    Case({"name": "gce"}, lambda p: (1 - max(p, mp.mpf(0.5)) ** mp.mpf(0.7)) / mp.mpf(0.7)),
    Case(
        {"name": "gce", "params": {"k": 0, "q": 0.3}},
        lambda p: (1 - p ** mp.mpf(0.3)) / mp.mpf(0.3),
    ),
    Case({"name": "profit"}, lambda p: -mp.log(p) if p > 0.1 else mp.mpf(0)),
    Case(
        {"name": "threshold", "lower": 0.1, "upper": 0.9},
        lambda p: -mp.log(p) if 0.1 <= p <= 0.9 else mp.mpf(0),
    ),
    Case(
        {"name": "threshold", "base": "poly1", "lower": 0.5},
        lambda p: 1 - p - mp.log(p) if p > 0.5 else mp.mpf(0),
    ),
    Case({"name": "mixture"}, lambda p: -p),
    *(
        Case({"name": "mixture"}, lambda p, e=e: -(p + e * mp.log(p)) / (1 + mp.mpf(e)), alpha=e)
        for e in (0.03, 1.0, 1e4)
    ),
    *(
        Case(
            {"name": "alpha", "floor": b},
            lambda p, b=b: -b * mp.log(p) + (1 - mp.mpf(b)) * (1 - p**2) / 2,
            alpha=2.0,
        )
        for b in (0.02, 1.0)
    ),
    Case({"name": "dft"}, lambda p: p, weighted=True),
    Case({"name": "deft"}, lambda p: p ** mp.mpf(C), weighted=True),
    Case({"name": "concentration"}, lambda p: p ** (3 * mp.sqrt(C)), weighted=True, alpha=3.0),
    Case(
        {"name": "concentration", "params": {"power": 2.0}, "floor": 0.1},
        lambda p: mp.mpf(0.1) + (1 - mp.mpf(0.1)) * p ** (3 * mp.mpf(C) ** 2),
        weighted=True,
        alpha=3.0,
    ),
    Case(
        {"name": "soft_threshold", "lower": 0.2},
        lambda p: 1 / (1 + (mp.mpf("0.2") / p) ** 2),
        weighted=True,
    ),
    Case({"name": "eaft"}, lambda p: mp.mpf(H20) / 3, weighted=True),
    Case({"name": "cayley"}, cayley, weighted=True),
    Case({"name": "talr"}, lambda p: max(p ** (1 / mp.mpf(TAU)), mp.mpf(0.01)), weighted=True),
    Case({"name": "idft"}, idft, weighted=True),
    Case({"name": "prift_prob"}, lambda p: mp.mpf(P_0), weighted=True),
    Case({"name": "prift_mass"}, lambda p: -mp.log(p)),
    Case({"name": "prift_mass", "params": {"cut": 0.7}}, lambda p: mp.mpf(0)),
    Case({"name": "psft"}, lambda p: -min(p / mp.mpf(P_0), mp.mpf(1.28))),
    Case({"name": "iw_sft"}, lambda p: p / mp.mpf(P_0), weighted=True),
    Case(
        {"name": "iw_sft", "params": {"temperature": 2, "clip": 2}},
        lambda p: min((p / mp.mpf(P_0)) ** 2, mp.mpf(2)),
        weighted=True,
    ),
    Case({"name": "dft", "reference": "base"}, lambda p: mp.mpf(P_0), weighted=True),
    Case({"name": "deft", "reference": "base"}, lambda p: mp.mpf(P_0) ** C_0, weighted=True),
    Case({"name": "eaft", "reference": "base"}, lambda p: mp.mpf(H20_0) / 3, weighted=True),
    Case(
        {"name": "chord_phi", "reference": "base"},
        lambda p: mp.mpf(P_0) * (1 - mp.mpf(P_0)),
        weighted=True,
    ),
    Case(
        {"name": "alpha", "reference": "base", "floor": 0.1},
        lambda p: mp.mpf(0.1) + (1 - mp.mpf(0.1)) * mp.mpf(P_0) ** 3,
        weighted=True,
        alpha=3.0,
    ),
    Case({"name": "chord_phi"}, lambda p: p * (1 - p), weighted=True),
    Case(
        {"name": "info_sft"},
        lambda p: p * max(0, mp.log(mp.mpf(0.93) / (1 - mp.mpf(0.93))) - mp.log(p / (1 - p))),
        weighted=True,
    ),
]


def label(case: Case) -> str:
    return " ".join(map(str, [*case.config.values(), *([case.alpha] if case.alpha else [])]))


def state_for(case: Case, count: int) -> ObjectiveState:
    return state_of(
        count,
        alpha=case.alpha,
        lower=case.config.get("lower", 0.0),
        upper=case.config.get("upper", 1.0),
        floor=case.config.get("floor", 0.0),
    )


def test_every_objective_has_a_reference() -> None:
    assert {case.config["name"] for case in CASES} == {*shipped(), "threshold"}


@pytest.mark.parametrize("case", CASES, ids=label)
def test_loss_and_weight_agree_to_50_digits(case: Case) -> None:
    tokens = tokens_at(case.points)
    objective = build_objective(ObjectiveConfig(**case.config))
    loss, weight = objective(tokens, state_for(case, len(case.points)))
    found = zip(case.points, loss.tolist(), weight.tolist(), strict=True)
    for point, loss_here, weight_here in found:
        p = mp.mpf(point)
        if case.weighted:
            weight_true, loss_true = case.reference(p), -case.reference(p) * mp.log(p)
        else:
            loss_true = case.reference(p)
            # -p f'(p) = -df/dl with l = log p
            weight_true = -mp.diff(lambda logp: case.reference(mp.exp(logp)), mp.log(p))
        assert abs(weight_here - weight_true) <= 1e-12 * abs(weight_true) + case.absolute, point
        assert abs(loss_here - loss_true) <= 1e-12 * abs(loss_true), point


@pytest.mark.parametrize("case", [case for case in CASES if not case.weighted], ids=label)
def test_the_weight_agrees_with_autograd(case: Case) -> None:
    p = torch.tensor([2e-8, 1e-5, 0.03, 0.3, 0.6, 0.8, 0.97, 1 - 2e-6], dtype=torch.float64)
    logp = p.log().requires_grad_()
    loss, weight = build_objective(ObjectiveConfig(**case.config))(
        tokens_of(logp, -torch.expm1(logp), torch.arange(len(p))), state_for(case, len(p))
    )
    slope = torch.autograd.grad(loss.sum(), logp)[0] if loss.requires_grad else torch.zeros_like(p)
    # torch's backward of expm1 rounds at 1
    torch.testing.assert_close(weight, -slope, rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("name", [*shipped(), "threshold"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 10.0])
def test_finite_at_the_ends_in_fp32(name: str, alpha: float) -> None:
    logp = torch.tensor([0.0, -1e-30, -1e-8, -80.0, -200.0])
    tokens = tokens_of(logp, -torch.expm1(logp), sequence=torch.arange(5))
    state = state_of(5, torch.float32, alpha=alpha, mean_p=0.0, sequence_nll=0.0)
    for params in ({}, {"batch": 1.0}):
        if params.keys() <= REGISTRY.get(name, REGISTRY["nll"]).parameters.keys():
            loss, weight = build_objective(ObjectiveConfig(name=name, params=params))(tokens, state)
            assert loss.dtype == weight.dtype == torch.float32
            assert loss.isfinite().all() and weight.isfinite().all(), (loss, weight)
            assert (weight >= 0).all()


def test_log1mp_beyond_its_clamp_is_the_tangent() -> None:
    tokens = tokens_at(BEYOND_CLAMP)
    loss, weight = build_objective(ObjectiveConfig(name="log1mp"))(tokens, None)
    found = zip(BEYOND_CLAMP, loss.tolist(), weight.tolist(), strict=True)
    for point, loss_here, weight_here in found:
        m = 1 - mp.mpf(point)
        assert abs(weight_here - (1 - m) / mp.mpf(1e-6)) <= 1e-12 * weight_here
        assert abs(loss_here - (mp.log(mp.mpf(1e-6)) + m / mp.mpf(1e-6) - 1)) <= 1e-12 * abs(
            loss_here
        )


def test_alpha_is_smooth_through_zero() -> None:
    tokens = tokens_at(P)
    at_zero, _ = build_objective(ObjectiveConfig(name="alpha"))(tokens, state_of(len(P)))
    for a in (9e-7, 1.1e-6):  # either side of the branch
        loss, _ = build_objective(ObjectiveConfig(name="alpha"))(tokens, state_of(len(P), alpha=a))
        torch.testing.assert_close(loss, at_zero, rtol=5e-5, atol=0)


def test_floor_and_mixture_lie_between_nll_and_what_they_bound() -> None:
    """Bit for bit at a floor of 0 and of 1; the mixture is NLL for a large e."""
    tokens = tokens_at(P)
    for name in ("alpha", "concentration"):
        plain, floored, full = (
            REGISTRY[name](tokens, state_of(len(P), alpha=3.0, floor=floor))
            for floor in (0.0, 0.01, 1.0)
        )
        exponent = 3 * tokens.collision**0.5 if name == "concentration" else 3
        assert torch.equal(plain[1], (exponent * tokens.logp).exp())
        assert torch.equal(full[1], torch.ones_like(tokens.logp))
        torch.testing.assert_close(full[0], -tokens.logp, rtol=1e-15, atol=0)
        assert (floored[1] >= 0.01).all()
        assert (floored[1] >= plain[1]).all()
    mixed = REGISTRY["mixture"](tokens, state_of(len(P), alpha=1e9))
    torch.testing.assert_close(mixed[1], torch.ones_like(mixed[1]), rtol=1e-8, atol=0)
    torch.testing.assert_close(mixed[0], -tokens.logp, rtol=1e-8, atol=1e-8)


def test_relations_between_objectives() -> None:
    """The scales and signs that the papers' errata are about."""
    tokens, state = tokens_at(P), state_of(len(P), alpha=10.0)
    weight = {name: objective(tokens, state)[1] for name, objective in REGISTRY.items()}
    torch.testing.assert_close(weight["neg_p_k"], 10 * weight["alpha"], rtol=1e-13, atol=0)
    torch.testing.assert_close(weight["dft"], weight["neg_p"], rtol=0, atol=0)
    # W = p, pushing p up
    torch.testing.assert_close(
        weight["log1mp"] * tokens.one_minus_p, tokens.logp.exp(), rtol=1e-13, atol=0
    )
    torch.testing.assert_close(
        build_objective(ObjectiveConfig(name="concentration", params={"power": 1.0}))(
            tokens, state_of(len(P), alpha=1.0)
        )[1],
        weight["deft"],
        rtol=1e-13,
        atol=0,
    )
    torch.testing.assert_close(
        REGISTRY["alpha"](tokens, state_of(len(P), alpha=1 / TAU))[1].clamp(min=0.01),
        weight["talr"],
        rtol=1e-13,
        atol=0,
    )


@pytest.mark.parametrize(
    ("name", "params", "alpha", "times", "peak", "at"),
    [
        ("alpha", {}, 1.0, "W", 0.25, 0.5),
        ("alpha", {}, 3.0, "W", 0.1055, 0.75),
        ("alpha", {}, 10.0, "W", 0.0350, 10 / 11),
        ("mixture", {}, 0.2, "W", 0.3, 0.4),
        ("neg_p_k", {}, 0.0, "W", 0.350, 10 / 11),
        ("focal", {}, 0.0, "weight", 1.225, 0.104),
        ("huber", {}, 0.0, "weight", 0.25, 0.5),
        ("huber", {"delta": 1}, 0.0, "W", 4 / 27, 1 / 3),
        ("chord_phi", {}, 0.0, "weight", 0.25, 0.5),
        ("info_sft", {}, 0.0, "weight", 1.31, 0.57),
    ],
)
def test_documented_peaks(
    name: str, params: dict, alpha: float, times: str, peak: float, at: float
) -> None:
    p = torch.linspace(1e-4, 1 - 1e-4, 9999, dtype=torch.float64)
    value = build_objective(ObjectiveConfig(name=name, params=params))(
        tokens_of(p.log(), 1 - p), state_of(len(p), alpha=alpha)
    )[1]
    value = value * (1 - p) if times == "W" else value
    assert float(value.max()) == pytest.approx(peak, rel=5e-3)
    assert float(p[value.argmax()]) == pytest.approx(at, abs=5e-3)


def test_published_batch_forms() -> None:
    p = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.3], dtype=torch.float64)
    tokens, state = tokens_of(p.log(), 1 - p, sequence=torch.tensor([0, 0, 1, 2, 3])), state_of(5)
    talr, cayley_ = (
        build_objective(ObjectiveConfig(name=name, params={"batch": 1}))
        for name in ("talr", "cayley")
    )
    assert (
        talr.whole_batch
        and cayley_.whole_batch
        and not build_objective(ObjectiveConfig(name="talr")).whole_batch
    )
    nll = -p.log()
    median = torch.stack([nll[:2].mean(), *nll[2:]]).median()
    at_median, at_mean = (
        state_of(5, sequence_nll=float(median)),
        state_of(5, mean_p=float(p.mean())),
    )
    torch.testing.assert_close(talr(tokens, state)[1], REGISTRY["talr"](tokens, at_median)[1])
    torch.testing.assert_close(cayley_(tokens, state)[1], REGISTRY["cayley"](tokens, at_mean)[1])
    with pytest.raises(ValueError, match="sequence"):
        talr(tokens._replace(sequence=None), state)
