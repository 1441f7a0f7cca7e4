"""The theory of arXiv:2510.00526 (sections 2 and 5, appendices F, G and H.6.2) as it holds.

docs/theory.md states each result in words, what is wrong in print, and the test that checks it:
here those of section 2 and appendix F, in test_theory_lemma_5.py and test_theory_flow.py those of
section 5 and appendix G. fp64 throughout; q is what the appendix calls the model's probabilities.
"""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptsft.objectives.base import REGISTRY
from tests.conftest import REPO
from tests.objectives import test_theory_flow, test_theory_lemma_5
from tests.objectives.theory import (
    F64,
    NEG_P,
    NLL,
    alpha,
    draws,
    evaluate,
    tokens_from,
    tokens_of,
    weight_of,
)


def is_weighted(name: str) -> bool:
    """Whether its docstring declares the loss as -weight log p, with the weight under
    stop-gradient."""
    return (
        bool(
            re.search(
                r"^\s*loss: -weight log p", REGISTRY[name].function.__doc__ or "", re.MULTILINE
            )
        )
        if name in REGISTRY
        else False
    )


# not those of other tests
SHIPPED = [
    name
    for name in REGISTRY
    if REGISTRY[name].function.__module__.startswith("adaptsft.objectives.library.")
]
EVERY = [{"name": name} for name in SHIPPED] + [alpha(value) for value in (0.3, 1.0, 4.0)]
EVERY += [{"name": "concentration", "alpha": 2.0}, {"name": "soft_threshold", "lower": 0.1}]
EVERY += [
    {"name": "threshold", "lower": 0.1, "upper": 0.8},
    {"name": "threshold", "base": "neg_p", "lower": 0.1},
]


@pytest.mark.parametrize("config", EVERY, ids=lambda config: " ".join(map(str, config.values())))
def test_lemma_1_every_objective_pulls_its_target_up(config):
    """dL/dz_i = s (p_i - delta_iy): the sign is the opposite of the printed one. W = s (1-p) is the
    *size* of dL/dz_y, which is -W."""
    logits = (3 * torch.randn(200, 30, generator=draws(0), dtype=F64)).requires_grad_()
    targets = torch.randint(30, (200,), generator=draws(1))
    with torch.no_grad():  # as many likely targets as unlikely ones
        logits[torch.arange(100), targets[:100]] += 6.0
    tokens = tokens_from(logits, targets)
    loss, weight = evaluate(config, tokens)
    if is_weighted(config["name"]):
        loss = (loss / -tokens.logp).detach() * -tokens.logp
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    p, target = logits.detach().softmax(-1), torch.nn.functional.one_hot(targets, 30)
    torch.testing.assert_close(
        gradient, weight.detach()[:, None] * (p - target), rtol=1e-8, atol=1e-12
    )
    at_target = gradient[target.bool()]
    torch.testing.assert_close(
        at_target, -(weight * tokens.one_minus_p).detach(), rtol=1e-8, atol=1e-12
    )
    assert (at_target <= 0).all() and (at_target < 0).any(), "descent raises the target's logit"
    assert (gradient[~target.bool()] >= 0).all(), "and lowers all others"


def test_lemma_1_does_not_cover_dft_without_its_stop_gradient():
    """-p log p is no decreasing f: s = p (1 + log p) is negative below 1/e, and unlikely targets
    are pushed further down."""
    p = torch.linspace(0.01, 0.99, 197, dtype=F64)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1).requires_grad_()
    logp = logits.log_softmax(-1)[:, 0]
    at_target = torch.autograd.grad((-logp.exp() * logp).sum(), logits)[0][:, 0]
    torch.testing.assert_close(-at_target / (1 - p), p * (1 + p.log()))
    assert torch.equal(at_target > 0, p < 1 / math.e)
    assert (weight_of({"name": "dft"}, p) > 0).all(), "with it, s = p"


def test_log1mp_falls_and_its_negative_unlearns():
    """The text has f = -log(1-p) for W = p. That f increases: s = -p/(1-p). log(1-p) is meant."""
    p = torch.linspace(0.01, 0.99, 99, dtype=F64, requires_grad=True)
    printed = -torch.autograd.grad(-torch.log1p(-p).sum(), p)[0] * p
    assert (printed < 0).all()
    torch.testing.assert_close(-printed.detach() * (1 - p.detach()), p.detach())
    torch.testing.assert_close(weight_of({"name": "log1mp"}, p.detach()), -printed.detach())


def test_equation_2_holds_for_the_logarithm_only():
    """f(p(sequence)) = sum_t f(p_t) for f = -log. For f = -p the left side weights every token by
    the probability of the whole sequence."""
    logp = torch.tensor([-0.1, -2.0, -0.7], dtype=F64, requires_grad=True)
    slope = {}
    for name, f in {"-log p": lambda x: -x, "-p": lambda x: -x.exp()}.items():
        whole, tokens = f(logp.sum()), f(logp).sum()
        slope[name] = [
            torch.autograd.grad(value, logp, retain_graph=True)[0] for value in (whole, tokens)
        ]
    torch.testing.assert_close(*slope["-log p"])
    torch.testing.assert_close(slope["-p"][0], -logp.detach().sum().exp().expand(3))
    torch.testing.assert_close(slope["-p"][1], -logp.detach().exp())


def focal(gamma: float) -> dict[str, Any]:
    return {"name": "focal", "params": {"gamma": gamma}}


def huber(delta: float) -> dict[str, Any]:
    return {"name": "huber", "params": {"delta": delta}}


CONVEX = [NLL, alpha(0.1), alpha(0.5), alpha(0.9), focal(2), focal(5), huber(0.5)]
CONVEX += [huber(0.2), huber(1), {"name": "sce"}, {"name": "poly1"}]
SHAPES = {
    "convex": CONVEX,
    "linear": [NEG_P, alpha(1.0), {"name": "neg_p_k", "params": {"k": 1}}],
    "concave": [alpha(1.5), alpha(3.0), alpha(10.0), {"name": "neg_p_k"}, {"name": "log1mp"}],
    "neither": [{"name": "gce"}],
}
P = torch.linspace(1e-3, 1 - 1e-3, 1999, dtype=F64)
STEP = float(P[1] - P[0])


def shape(f: Tensor) -> str:
    """Of values at equal steps, by their second differences."""
    bends, rounding = f.diff(n=2, dim=-1), 1e-13 * float(f.abs().max())
    convex, concave = bool((bends >= -rounding).all()), bool((bends <= rounding).all())
    return {(True, True): "linear", (True, False): "convex", (False, True): "concave"}.get(
        (convex, concave), "neither"
    )


@pytest.mark.parametrize("expected", SHAPES)
def test_proposition_1_where_W_peaks(expected):
    """f convex: the maximiser of W is in [0, 1/2]; concave: in [1/2, 1]; both, as -p: at 1/2."""
    for config in SHAPES[expected]:
        f, weight = evaluate(config, tokens_of(P))
        assert shape(f) == expected, config
        peak = float(P[(weight * (1 - P)).argmax()])
        if expected in ("convex", "linear"):
            assert peak <= 0.5 + STEP, config
        if expected in ("concave", "linear"):
            assert peak >= 0.5 - STEP, config


def test_proposition_1_covers_every_function_of_p():
    """Also by its defaults, whatever its shape; weighted likelihoods have no f, masks break f' < 0,
    and what reads the base model is no function of p alone."""
    alone = {name for name in SHIPPED if "reference" not in REGISTRY[name].needs}
    functions = alone - {*filter(is_weighted, SHIPPED), "profit"}
    assert functions >= {config["name"] for configs in SHAPES.values() for config in configs}
    for name in functions:
        f, weight = evaluate({"name": name}, tokens_of(P))
        kind, peak = shape(f), float(P[(weight * (1 - P)).argmax()])
        assert kind not in ("convex", "linear") or peak <= 0.5 + STEP, name
        assert kind not in ("concave", "linear") or peak >= 0.5 - STEP, name


def test_proposition_1_on_random_mixtures():
    """Sums of convex (concave) functions are convex (concave): 2,000 random ones of each kind, of
    members of the family."""
    for low, high, allowed in (
        (0.02, 1.0, lambda peak: peak <= 0.5 + STEP),
        (1.0, 20.0, lambda peak: peak >= 0.5 - STEP),
    ):
        exponents = low + (high - low) * torch.rand(2000, 4, generator=draws(2), dtype=F64)
        shares = torch.rand(2000, 4, generator=draws(3), dtype=F64) ** 4
        w = sum(shares[:, i, None] * P ** exponents[:, i, None] for i in range(4)) * (1 - P)
        assert allowed(P[w.argmax(1)]).all()


@pytest.mark.parametrize(
    ("config", "end", "slope"), [(NLL, 0.0, -1.0), ({"name": "log1mp"}, 1.0, 1.0)]
)
def test_proposition_1_needs_its_condition_at_the_ends(config, end, slope):
    """NLL at 0 and log(1-p) at 1 are not C^2, though the paper applies the proposition to them: f'
    is unbounded, W grows towards the end and has a supremum, 1, but no maximiser. In the limit the
    conclusion holds."""
    near = (
        (end - slope * torch.logspace(-5, -1, 20, dtype=F64)).abs()
        if end
        else torch.logspace(-5, -1, 20, dtype=F64)
    )
    weight = weight_of(config, near)
    w = weight * (1 - near)
    assert (w.diff() < 0).all() and w[0] == pytest.approx(1.0, abs=2e-5) and w[0] < 1
    assert float((weight / near)[0]) > 0.99e5, "|f'| = s/p"


def test_the_familys_maximiser():
    """W of f_alpha is p^alpha (1-p), with its peak at alpha / (1 + alpha)."""
    values = [0.02, 0.1, 0.3, 1.0, 2.0, 3.0, 7.0, 10.0, 40.0]
    peaks = torch.stack([P[(weight_of(alpha(value), P) * (1 - P)).argmax()] for value in values])
    torch.testing.assert_close(
        peaks, torch.tensor([value / (1 + value) for value in values], dtype=F64), rtol=0, atol=STEP
    )


def test_the_mixture_has_one_optimum_and_leaves_a_wrong_start_sooner():
    """The expected loss is strictly convex along 500 lines between two distributions of 9 tokens.
    Where 65 % of the labels say one thing and 35 % another, e = .009 and alpha = .87 both end at
    about 1 % for the other, and at p = 1e-4 the mixture's weight is 27 times that of alpha."""
    true, one, other = (
        torch.randn(500, 9, generator=draws(seed), dtype=F64).softmax(-1) for seed in (5, 6, 7)
    )
    steps = torch.linspace(0, 1, 21, dtype=F64)[:, None, None]
    p = torch.lerp(one, other, steps)
    for e in (0.003, 0.3, 10.0):
        f, _ = evaluate({"name": "mixture", "alpha": e}, tokens_of(p.flatten()))
        assert ((true * f.view_as(p)).sum(-1).diff(n=2, dim=0) > 0).all()
    mixture, family = {"name": "mixture", "alpha": 0.009}, alpha(0.87)
    for config in (mixture, family):
        f = evaluate(config, tokens_of(P))[0]
        expected = 0.65 * f + 0.35 * f.flip(0)  # P.flip(0) is 1 - P
        assert 1 - float(P[expected.argmin()]) == pytest.approx(0.009, abs=0.002)
    start = torch.tensor([1e-4], dtype=F64)
    escape = [float(weight_of(config, start)) for config in (mixture, family)]
    assert escape == pytest.approx([9.0e-3, 3.3e-4], rel=0.02)


@pytest.mark.parametrize(("gamma", "peak", "at"), [(2.0, 1.225, 0.104), (5.0, 1.39, 0.06)])
def test_focal_is_at_most_a_little_above_nll(gamma, peak, at):
    """H.6.2 calls -gamma p log p large for small p; it vanishes there, and W_focal / W_NLL has a
    modest peak."""
    config = {"name": "focal", "params": {"gamma": gamma}}
    ratio = weight_of(config, P) / weight_of(NLL, P)
    assert float(ratio.max()) == pytest.approx(peak, rel=5e-3) and float(
        P[ratio.argmax()]
    ) == pytest.approx(at, abs=5e-3)
    tiny = torch.tensor([1e-6, 1e-12], dtype=F64)
    assert (weight_of(config, tiny) - 1).abs().max() < 1e-4
    assert (-gamma * tiny * tiny.log() < 1e-4).all()


@pytest.mark.parametrize(("delta", "at"), [(0.2, 0.5), (0.5, 0.5), (0.6, 0.4), (1.0, 1 / 3)])
def test_huber_is_no_prior_leaning_objective_by_proposition_1(delta, at):
    """H.6.2 calls it prior-leaning; it is convex, and W never peaks above 1/2: at 1/2, or for delta
    > 1/2 at max(1/3, 1 - delta)."""
    w = weight_of({"name": "huber", "params": {"delta": delta}}, P) * (1 - P)
    assert float(P[w.argmax()]) == pytest.approx(at, abs=STEP)


def test_the_page_names_tests_that_exist():
    page = (REPO / "docs" / "theory.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    here = {*globals(), *vars(test_theory_flow), *vars(test_theory_lemma_5)}
    here = {name for name in here if re.match("test_(?!theory|the_page)", name)}
    assert named == here, f"only on the page: {named - here}; only here: {here - named}"
