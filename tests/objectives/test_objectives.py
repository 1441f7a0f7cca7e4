"""Every objective against 50 digits and autograd, at the ends of its range, and as a user configures it."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mpmath as mp
import pytest
import torch
from torch import Tensor

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.errors import ConfigError
from adaptsft.objectives import library
from adaptsft.objectives.base import REGISTRY, Objective, register
from adaptsft.objectives.build import build_objective, describe_objectives
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics
from tests.conftest import REPO

mp.mp.dps = 400  # 50 digits must be left of the derivative of 1 - p^10 at p = 1e-30
H, C, H20 = 1.3, 0.4, 1.1  # entropy, sum p_i^2 and top-20 entropy of every test row
MEAN_P, TAU = 0.6, 0.8
P = [
    "1e-30",
    "3e-20",
    "1e-12",
    "1e-8",
    "2e-7",
    "1e-4",
    "0.0103",
    "0.0998",
    "0.1002",
    "0.2",
    "0.36",
    "0.49",
    "0.51",
    "0.63",
    "0.75",
    "0.92",
]
P += [
    "0.9301",
    "0.95",
    "0.99",
    "0.9999",
    "0.99999",
    "0.9999985",
]  # log1mp is exact up to 1 - 1e-6, its clamp
BEYOND_CLAMP = ["0.9999999", "0.99999999999", "0.999999999999"]


class Case(NamedTuple):
    config: dict[str, Any]
    reference: Callable[[Any], Any]  # f(p) of a function; the weight w(p) of a weighted likelihood
    weighted: bool = False
    alpha: float = 0.0
    points: list[str] = P + BEYOND_CLAMP


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
    Case({"name": "dft"}, lambda p: p, weighted=True),
    Case({"name": "deft"}, lambda p: p ** mp.mpf(C), weighted=True),
    Case({"name": "concentration"}, lambda p: p ** (3 * mp.mpf(C)), weighted=True, alpha=3.0),
    Case(
        {"name": "soft_threshold", "lower": 0.2},
        lambda p: 1 / (1 + (mp.mpf("0.2") / p) ** 2),
        weighted=True,
    ),
    Case({"name": "eaft"}, lambda p: mp.mpf(H20) / 3, weighted=True),
    Case({"name": "cayley"}, cayley, weighted=True),
    Case({"name": "talr"}, lambda p: max(p ** (1 / mp.mpf(TAU)), mp.mpf(0.01)), weighted=True),
    Case({"name": "idft"}, idft, weighted=True),
    Case({"name": "chord_phi"}, lambda p: p * (1 - p), weighted=True),
    Case(
        {"name": "info_sft"},
        lambda p: p * max(0, mp.log(mp.mpf(0.93) / (1 - mp.mpf(0.93))) - mp.log(p / (1 - p))),
        weighted=True,
    ),
]


def label(case: Case) -> str:
    return " ".join(map(str, [*case.config.values(), *([case.alpha] if case.alpha else [])]))


def rows_of(logp: Tensor, one_minus_p: Tensor, sequence: Tensor | None = None) -> TokenStatistics:
    full = torch.full_like(logp, 1.0)
    return TokenStatistics(
        logp,
        one_minus_p,
        H * full,
        C * full,
        logp > -0.7,
        logp.clamp(min=-0.5),
        H20 * full,
        sequence,
    )


def rows_at(points: list[str]) -> TokenStatistics:
    p = [mp.mpf(point) for point in points]
    logp, one_minus_p = (
        [float(value) for value in values] for values in (map(mp.log, p), (1 - x for x in p))
    )
    return rows_of(
        torch.tensor(logp, dtype=torch.float64), torch.tensor(one_minus_p, dtype=torch.float64)
    )


def control_of(count: int, dtype: torch.dtype = torch.float64, **values: float) -> ObjectiveState:
    values = {
        "alpha": 0.0,
        "lower": 0.0,
        "upper": 1.0,
        "mean_p": MEAN_P,
        "sequence_nll": TAU,
        "mass": 1.0,
        "exempt": 0.0,
    } | values
    return ObjectiveState(
        **{name: torch.full((count,), value, dtype=dtype) for name, value in values.items()}
    )


def control_for(case: Case, count: int) -> ObjectiveState:
    return control_of(
        count,
        alpha=case.alpha,
        lower=case.config.get("lower", 0.0),
        upper=case.config.get("upper", 1.0),
    )


def shipped() -> dict[str, Objective]:
    """The registry without what other tests have added to it."""
    return {
        name: objective
        for name, objective in REGISTRY.items()
        if objective.function.__module__ == library.__name__
    }


def test_every_objective_has_a_reference() -> None:
    assert {case.config["name"] for case in CASES} == {*shipped(), "threshold"}


@pytest.mark.parametrize("case", CASES, ids=label)
def test_loss_and_s_agree_to_50_digits(case: Case) -> None:
    rows = rows_at(case.points)
    loss, s = build_objective(ObjectiveConfig(**case.config))(
        rows, control_for(case, len(case.points))
    )
    for point, loss_here, s_here in zip(case.points, loss.tolist(), s.tolist(), strict=True):
        p = mp.mpf(point)
        if case.weighted:
            s_true, loss_true = case.reference(p), -case.reference(p) * mp.log(p)
        else:
            # s = -p f'(p) = -df/dl with l = log p
            s_true, loss_true = (
                -mp.diff(lambda logp: case.reference(mp.exp(logp)), mp.log(p)),
                case.reference(p),
            )
        assert abs(s_here - s_true) <= 1e-12 * abs(s_true), (point, s_here, s_true)
        assert abs(loss_here - loss_true) <= 1e-12 * abs(loss_true), (point, loss_here, loss_true)


@pytest.mark.parametrize("case", [case for case in CASES if not case.weighted], ids=label)
def test_s_agrees_with_autograd(case: Case) -> None:
    p = torch.tensor([2e-8, 1e-5, 0.03, 0.3, 0.6, 0.8, 0.97, 1 - 2e-6], dtype=torch.float64)
    logp = p.log().requires_grad_()
    loss, s = build_objective(ObjectiveConfig(**case.config))(
        rows_of(logp, -torch.expm1(logp)), control_for(case, len(p))
    )
    slope = torch.autograd.grad(loss.sum(), logp)[0] if loss.requires_grad else torch.zeros_like(p)
    torch.testing.assert_close(
        s, -slope, rtol=1e-7, atol=1e-15
    )  # torch's backward of expm1 rounds at 1


@pytest.mark.parametrize("name", [*REGISTRY, "threshold"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 10.0])
def test_finite_at_the_ends_in_fp32(name: str, alpha: float) -> None:
    logp = torch.tensor([0.0, -1e-30, -1e-8, -80.0, -200.0])
    rows = rows_of(logp, -torch.expm1(logp), sequence=torch.arange(5))
    control = control_of(5, torch.float32, alpha=alpha, mean_p=0.0, sequence_nll=0.0)
    for params in ({}, {"batch": 1.0}):
        if params.keys() <= REGISTRY.get(name, REGISTRY["nll"]).parameters.keys():
            loss, s = build_objective(ObjectiveConfig(name=name, params=params))(rows, control)
            assert loss.dtype == s.dtype == torch.float32
            assert loss.isfinite().all() and s.isfinite().all(), (loss, s)
            assert (s >= 0).all()


def test_log1mp_beyond_its_clamp_is_the_tangent() -> None:
    rows = rows_at(BEYOND_CLAMP)
    loss, s = build_objective(ObjectiveConfig(name="log1mp"))(rows, None)
    for point, loss_here, s_here in zip(BEYOND_CLAMP, loss.tolist(), s.tolist(), strict=True):
        m = 1 - mp.mpf(point)
        assert abs(s_here - (1 - m) / mp.mpf(1e-6)) <= 1e-12 * s_here
        assert abs(loss_here - (mp.log(mp.mpf(1e-6)) + m / mp.mpf(1e-6) - 1)) <= 1e-12 * abs(
            loss_here
        )


def test_alpha_is_smooth_through_zero() -> None:
    rows = rows_at(P)
    at_zero, _ = build_objective(ObjectiveConfig(name="alpha"))(rows, control_of(len(P)))
    for a in (9e-7, 1.1e-6):  # either side of the branch
        loss, _ = build_objective(ObjectiveConfig(name="alpha"))(rows, control_of(len(P), alpha=a))
        torch.testing.assert_close(loss, at_zero, rtol=5e-5, atol=0)


def test_relations_between_objectives() -> None:
    """The scales and signs that the papers' errata are about."""
    rows, control = rows_at(P), control_of(len(P), alpha=10.0)
    s = {name: objective(rows, control)[1] for name, objective in REGISTRY.items()}
    torch.testing.assert_close(s["neg_p_k"], 10 * s["alpha"], rtol=1e-13, atol=0)
    torch.testing.assert_close(s["dft"], s["neg_p"], rtol=0, atol=0)
    torch.testing.assert_close(
        s["log1mp"] * rows.one_minus_p, rows.logp.exp(), rtol=1e-13, atol=0
    )  # W = p, pushing p up
    torch.testing.assert_close(
        REGISTRY["concentration"](rows, control_of(len(P), alpha=1.0))[1],
        s["deft"],
        rtol=1e-13,
        atol=0,
    )
    torch.testing.assert_close(
        REGISTRY["alpha"](rows, control_of(len(P), alpha=1 / TAU))[1].clamp(min=0.01),
        s["talr"],
        rtol=1e-13,
        atol=0,
    )


@pytest.mark.parametrize(
    ("name", "params", "alpha", "times", "peak", "at"),
    [
        ("alpha", {}, 1.0, "W", 0.25, 0.5),
        ("alpha", {}, 3.0, "W", 0.1055, 0.75),
        ("alpha", {}, 10.0, "W", 0.0350, 10 / 11),
        ("neg_p_k", {}, 0.0, "W", 0.350, 10 / 11),
        ("focal", {}, 0.0, "s", 1.225, 0.104),
        ("huber", {}, 0.0, "s", 0.25, 0.5),
        ("huber", {"delta": 1}, 0.0, "W", 4 / 27, 1 / 3),
        ("chord_phi", {}, 0.0, "s", 0.25, 0.5),
        ("info_sft", {}, 0.0, "s", 1.31, 0.57),
    ],
)
def test_documented_peaks(
    name: str, params: dict, alpha: float, times: str, peak: float, at: float
) -> None:
    p = torch.linspace(1e-4, 1 - 1e-4, 9999, dtype=torch.float64)
    value = build_objective(ObjectiveConfig(name=name, params=params))(
        rows_of(p.log(), 1 - p), control_of(len(p), alpha=alpha)
    )[1]
    value = value * (1 - p) if times == "W" else value
    assert float(value.max()) == pytest.approx(peak, rel=5e-3)
    assert float(p[value.argmax()]) == pytest.approx(at, abs=5e-3)


def test_threshold_follows_each_rows_own_bounds() -> None:
    p = torch.tensor([0.1, 0.3, 0.6, 0.3, 0.6, 0.95])
    control = control_of(6)._replace(
        lower=torch.tensor([0.0, 0.2, 0.2, 0.5, 0.5, 0.0]),
        upper=torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.9]),
    )
    objective, rows = (
        build_objective(ObjectiveConfig(name="threshold", base="neg_p", lower=0.2)),
        rows_of(p.log(), 1 - p),
    )
    loss, s = objective(rows, control)
    kept = torch.tensor([True, True, False, False, True, False])
    assert torch.equal(objective.keep(rows, control), kept)
    torch.testing.assert_close(s, torch.where(kept, p, 0.0))
    torch.testing.assert_close(loss, torch.where(kept, -p, 0.0))


def test_what_is_kept() -> None:
    p = torch.tensor([0.05, 0.3, 0.6])
    rows, control = rows_of(p.log(), 1 - p), control_of(3, lower=0.1, upper=0.5)
    kept = {
        name: objective.keep(rows, control).tolist()
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
    assert both.keep(rows_of(p.log(), 1 - p), control_of(4, lower=0.1, upper=0.7)).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_published_batch_forms() -> None:
    p = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.3], dtype=torch.float64)
    rows, control = rows_of(p.log(), 1 - p, sequence=torch.tensor([0, 0, 1, 2, 3])), control_of(5)
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
        control_of(5, sequence_nll=float(median)),
        control_of(5, mean_p=float(p.mean())),
    )
    torch.testing.assert_close(talr(rows, control)[1], REGISTRY["talr"](rows, at_median)[1])
    torch.testing.assert_close(cayley_(rows, control)[1], REGISTRY["cayley"](rows, at_mean)[1])
    with pytest.raises(ValueError, match="sequence"):
        talr(rows._replace(sequence=None), control)


def test_declared_needs_and_uses_are_what_is_read() -> None:
    class Reads:
        def __init__(self, values: NamedTuple) -> None:
            self.values, self.names = values, set()

        def __getattr__(self, name: str) -> Tensor:
            self.names.add(name)
            return getattr(self.values, name)

    for name in [*REGISTRY, "threshold"]:
        objective = build_objective(ObjectiveConfig(name=name))
        rows, control = Reads(rows_at(P)), Reads(control_of(len(P)))
        objective.function(rows, control)
        assert control.names == objective.uses, name
        assert rows.names & {"top_entropy"} == objective.needs, name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "focl"}, ["objective.name=focl", "did you mean focal", "neg_p_k"]),
        ({"name": "threshold", "base": "nil"}, ["objective.base=nil", "did you mean nll"]),
        ({"name": "threshold", "base": "threshold"}, ["objective.base=threshold"]),
        ({"name": "dft", "base": "neg_p"}, ["objective.base=neg_p has no effect"]),
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
        ({"name": "nll", "lower": 0.2}, ["objective.lower=0.2 has no effect", "threshold"]),
        (
            {"name": "nll", "upper_quantile": 0.2},
            ["objective.upper_quantile=0.2 has no effect", "threshold"],
        ),
        (
            {"name": "neg_p", "alpha": 0.5},
            ["objective.alpha=0.5 has no effect", "alpha, concentration"],
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


@pytest.fixture
def only_shipped() -> Iterator[None]:
    """The registry without what other tests register, and as it was afterwards."""
    everything = REGISTRY.copy()
    ours = shipped()
    REGISTRY.clear()
    REGISTRY.update(ours)
    yield
    REGISTRY.clear()
    REGISTRY.update(everything)


@pytest.mark.usefixtures("only_shipped")
def test_an_objective_registered_from_outside() -> None:
    @register("square", uses=["alpha"], bounds={"weight": (0.0, 10.0)})
    def square(
        rows: TokenStatistics, control: Any, *, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """loss: weight (1-p)^2
        s: 2 weight p (1-p)
        """
        return weight * rows.one_minus_p**2, 2 * weight * rows.logp.exp() * rows.one_minus_p

    rows = rows_at(["0.25"])
    loss, s = build_objective(ObjectiveConfig(name="square", alpha=1.0, params={"weight": 2}))(
        rows, control_of(1)
    )
    assert loss.item() == pytest.approx(2 * 0.75**2) and s.item() == pytest.approx(4 * 0.25 * 0.75)
    assert build_objective(ObjectiveConfig(name="threshold", base="square")).uses == {
        "alpha",
        "lower",
        "upper",
    }
    assert "| weight (1-p)^2 " in describe_objectives() and "| weight=1 " in describe_objectives()
    with pytest.raises(ValueError, match="square is registered already"):
        register("square")(square)
    with pytest.raises(ConfigError, match=r"params\.weight=11"):
        build_objective(ObjectiveConfig(name="square", params={"weight": 11}))


@pytest.mark.usefixtures("only_shipped")
def test_documentation_is_current_and_its_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPO / "docs" / "objectives.md").read_text()
    assert describe_objectives() in text, (
        "paste the output of `python -m adaptsft.objectives.build` into docs/objectives.md"
    )
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], {"__name__": "example"})
    objective = build_objective(ObjectiveConfig(name="cosine", alpha=1.0, params={"power": 2.0}))
    loss, s = objective(rows_at(P), control_of(len(P), alpha=1.0))
    assert loss.isfinite().all() and (s >= 0).all() and s.max() <= 1
