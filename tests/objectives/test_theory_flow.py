"""Section 5 and appendix G of arXiv:2510.00526: the gradient flow of softmax logits. See
test_theory.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.theory import (
    F64,
    NEG_P,
    NLL,
    Contexts,
    alpha,
    ascend,
    draws,
    excess,
    finite_difference,
    lemma_5_2,
    preconditioned,
    reduction,
    strong,
    uniform,
    weight_of,
)


def test_lemma_3_gradients_of_risk_and_loss():
    """dR/dz = (r.q) q - r*q and dL/dz = beta - S q, for any r and T. Here the paper has the right
    sign, the opposite of its Lemma 1."""
    q, r, t = (
        torch.randn(50, 9, generator=draws(seed), dtype=F64).softmax(-1) for seed in (9, 10, 11)
    )
    logits = q.log().requires_grad_()
    now = logits.softmax(-1)
    risk, loss = -(r * now).sum(), (t * -now.log()).sum()
    torch.testing.assert_close(
        torch.autograd.grad(risk, logits, retain_graph=True)[0],
        (r * q).sum(1, keepdim=True) * q - r * q,
    )
    beta = t * q * (-1 / q)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], beta - beta.sum(1, keepdim=True) * q
    )


@pytest.mark.parametrize(
    "config",
    [NLL, NEG_P, alpha(3.0), {"name": "log1mp"}, {"name": "focal"}],
    ids=lambda config: config["name"],
)
def test_corollary_1_is_the_slope_of_the_real_flow(config):
    """The closed form against finite differences of the risk along the gradient of the loss, at
    both ends, with preconditioned features."""
    for contexts in (
        uniform(7, False),
        uniform(7, True),
        strong(40, 7, 12, False),
        strong(40, 7, 13, True),
    ):
        features = preconditioned(len(contexts.q), 7, 11, 14)
        torch.testing.assert_close(
            finite_difference(config, contexts, features),
            reduction(config, contexts),
            rtol=1e-6,
            atol=1e-10,
        )


def test_corollary_1_is_of_one_context():
    """Eq. 7 takes E_x inside a product of two means over contexts. With parameters of their own, n
    contexts give 1/n of it; with shared ones there are cross terms: here a context that is labelled
    right is unlearned because of another."""
    q = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9]], dtype=F64)
    true, label = torch.tensor([0, 1]), torch.tensor([0, 2])
    contexts = Contexts(q, true, label)

    def true_slope(shared: bool) -> float:
        theta = torch.zeros(1 if shared else 2, 3, dtype=F64, requires_grad=True)
        now = (q.log() + theta).softmax(-1)
        risk = -now.gather(1, true[:, None]).mean()
        loss = -now.gather(1, label[:, None]).log().mean()
        gradients = [
            torch.autograd.grad(value, theta, retain_graph=True)[0] for value in (risk, loss)
        ]
        return float((gradients[0] * gradients[1]).sum())

    equation_7 = float(reduction(NLL, contexts).mean())
    assert true_slope(shared=False) == pytest.approx(equation_7 / 2)
    assert true_slope(shared=True) != pytest.approx(equation_7 / 2, rel=0.1)


def test_equation_8_has_another_remainder():
    """Exact is R(theta) - R(theta - eta g) = eta <dR, g> - eta^2 int (1-t) g'R''g dt. The printed
    one, eta^2/2 int g'R''g dt, agrees to first order only, which is all that Corollary 1 needs."""
    # step: eta g
    q, step = (
        torch.tensor([0.5, 0.3, 0.2], dtype=F64),
        torch.tensor([-1.0, 0.4, 0.6], dtype=F64),
    )

    def risk(t: Tensor) -> Tensor:
        return -(q.log() - t[:, None] * step).softmax(-1)[:, 0]

    t = ((torch.arange(400, dtype=F64) + 0.5) / 400).requires_grad_()
    slopes = torch.autograd.grad(risk(t).sum(), t, create_graph=True)[0]  # -<dR, eta g> at t
    bends = torch.autograd.grad(slopes.sum(), t)[0]
    start = torch.zeros(1, dtype=F64, requires_grad=True)
    first_order = -float(torch.autograd.grad(risk(start).sum(), start)[0])
    change = float((risk(start) - risk(start + 1)).detach())
    assert change == pytest.approx(first_order - float(((1 - t) * bends).mean().detach()), abs=1e-6)
    assert abs(change - (first_order - float(bends.mean()) / 2)) > 1e-3


def difference(first: dict[str, Any], second: dict[str, Any], contexts: Contexts) -> float:
    """How much faster the first objective lowers the risk than the second, the mean over contexts
    (Eq. 14)."""
    return float((reduction(first, contexts) - reduction(second, contexts)).mean())


# s_1 < s_2: f_2' - f_1' < 0
LEANING = [
    (NEG_P, NLL),
    (alpha(10.0), NLL),
    (NEG_P, alpha(0.1)),
    (alpha(5.0), NEG_P),
]
either = pytest.mark.parametrize(
    ("first", "second"), LEANING, ids=["neg_p-nll", "alpha10-nll", "neg_p-alpha0.1", "alpha5-neg_p"]
)


@either
def test_theorem_1_at_the_weak_end(first, second):
    """From a uniform model the objective with the smaller s learns slower, at any rate of wrong
    labels below (V-1)/V; Eq. 20 exactly."""
    size = 50
    at = torch.full((1,), 1 / size, dtype=F64)
    # (f_2' - f_1')(1/V) = (s_1 - s_2) / p
    slopes = float((weight_of(first, at) - weight_of(second, at)) * size)
    assert slopes < 0
    for rate in (0.0, 0.3, 0.9, 0.99):
        found = (1 - rate) * difference(first, second, uniform(size, False)) + rate * difference(
            first, second, uniform(size, True)
        )
        assert found == pytest.approx(
            slopes / size**3 * ((size - 1) * (1 - rate) - rate), rel=1e-9, abs=1e-18
        )
        assert (found < 0) == (rate < (size - 1) / size)


@either
def test_theorem_1_at_the_strong_end(first, second):
    """There the order reverses where more than |A| / (B - A) of the labels are wrong, provided that
    B > 0; below that rate it does not. In these random contexts that is 65 to 70 % of the labels.
    """
    right, wrong = strong(4000, 8, 15, False), strong(4000, 8, 16, True)
    for contexts in (right, wrong):
        mass = contexts.mass
        assert (mass >= 0.55).double().mean() >= 0.70, "Assumption 3"
        assert ((mass >= 0.55) & (mass <= 0.95)).double().mean() >= max(
            0.30, float((mass <= 0.5).double().mean())
        ), "Assumptions 2 and 4"
    a, b = difference(first, second, right), difference(first, second, wrong)
    assert a < 0 < b
    rate = -a / (b - a)
    assert 0.65 < rate < 0.70
    for wrong_share, sign in ((0.0, -1), (rate - 0.01, -1), (rate + 0.01, 1)):
        assert sign * ((1 - wrong_share) * a + wrong_share * b) > 0


def test_theorem_1_reverses_in_a_real_flow():
    """-p against NLL, weak and strong, by finite differences of the flow itself at a rate of wrong
    labels where both ends hold."""
    rate, slopes = 0.8, {}
    for end, of in {
        "weak": lambda noisy: uniform(8, noisy),
        "strong": lambda noisy: strong(400, 8, 17, noisy),
    }.items():
        for config in (NLL, NEG_P):
            right, wrong = (
                float(
                    finite_difference(
                        config, of(noisy), preconditioned(len(of(noisy).q), 8, 12, 18)
                    ).mean()
                )
                for noisy in (False, True)
            )
            slopes[end, config["name"]] = (1 - rate) * right + rate * wrong
    assert slopes["weak", "neg_p"] < slopes["weak", "nll"]
    assert slopes["strong", "neg_p"] > slopes["strong", "nll"]


def test_theorem_2_excludes_its_own_example():
    """c < 10 d, where q (f_2' - f_1') > -c on [0, .55] and < -d on [.55, .95]: for -p against NLL
    the least c is 1, the largest d .05. Against NLL it holds for f_alpha with alpha > log(.9) /
    log(.95) = 2.05."""
    low, high = (
        torch.linspace(0, 0.55, 5501, dtype=F64).clamp(min=1e-12),
        torch.linspace(0.55, 0.95, 4001, dtype=F64),
    )

    def constants(config: dict[str, Any]) -> tuple[float, float]:
        return tuple(
            float(value)
            for value in (
                (weight_of(NLL, low) - weight_of(config, low)).max(),
                (weight_of(NLL, high) - weight_of(config, high)).min(),
            )
        )

    c, d = constants(NEG_P)
    assert c == pytest.approx(1, abs=1e-9) and d == pytest.approx(0.05) and c > 10 * d
    edge = math.log(0.9) / math.log(0.95)
    for value, holds in ((edge - 0.01, False), (edge + 0.01, True), (10.0, True)):
        c, d = constants(alpha(value))
        assert (c < 10 * d) == holds


def test_equation_23_counts_the_label_twice():
    """Eq. 22 is E[R Q / q_y~], with R = q_y~ (f_2' - f_1') and Q = q_y~ q_y* (-q_y* - q_y~ +
    |q|^2); E[Q R] in Eq. 23 has q_y~ twice. What .00546 bounds is therefore not what is needed: the
    largest Q / q_y~ is sqrt(3) / 18 = .0962."""
    wrong = strong(500, 6, 21, True)
    label = wrong.of(wrong.label)
    r, q = weight_of(NEG_P, label) - weight_of(NLL, label), lemma_5_2(wrong.q)
    torch.testing.assert_close(reduction(NEG_P, wrong) - reduction(NLL, wrong), r * q / label)
    best, place = ascend(lambda q: 10 * q[:, 0] * excess(q), 5)
    assert (
        best / 10 == pytest.approx(math.sqrt(3) / 18, abs=1e-4) and best / 10 <= math.sqrt(3) / 18
    )
    assert float(place[0]) == pytest.approx((3 - math.sqrt(3)) / 6, abs=0.02)


def test_theorem_2_needs_more_than_its_assumptions():
    """NLL against f_10 meets c < 10 d, and these contexts Assumptions 3 and 4: 70 % with q_y* +
    q_y~ = .9401, but nearly all of it on the label; in the others nothing on it. Still B < 0: no
    rate of wrong labels reverses the order."""
    a = (3 - math.sqrt(3)) / 6
    q = torch.tensor([[1e-4, 0.94, 0.0599]] * 7 + [[a, 1e-9, 1 - a - 1e-9]] * 3, dtype=F64)
    zeros = torch.zeros(10, dtype=torch.int64)
    wrong = Contexts(q, zeros, zeros + 1)
    in_band = ((wrong.mass >= 0.55) & (wrong.mass <= 0.95)).double().mean()
    assert in_band >= 0.70 and in_band >= (wrong.mass <= 0.5).double().mean()
    assert difference(alpha(10.0), NLL, strong(4000, 8, 15, False)) < 0
    assert difference(alpha(10.0), NLL, wrong) < 0


@either
def test_theorem_2_with_a_condition_that_suffices(first, second):
    """B >= .045 d E[q_y*; q_y~ in [.55, .95], u <= .95] - sqrt(3)/18 c Pr[u <= .5]. Where that is
    positive the reversal comes."""
    reverses = []
    for seed, outside in enumerate([0.0, 0.001, 0.01, 0.1, 0.3] * 4):
        wrong = strong(1000, 6, 100 + seed, True, outside)
        label = wrong.of(wrong.label)
        gap = weight_of(second, label) - weight_of(first, label)  # -q (f_2' - f_1')
        high = (label >= 0.55) & (label <= 0.95) & (wrong.mass <= 0.95)
        c, d = gap[label <= 0.55].max(), gap[high].min()
        product = torch.where(high, wrong.of(wrong.true), 0.0).mean()
        bound = float(
            0.045 * d * product - math.sqrt(3) / 18 * c * (wrong.mass <= 0.5).double().mean()
        )
        assert difference(first, second, wrong) >= bound
        reverses.append(bound > 0)
    assert any(reverses), "the condition can be met"


def test_theorem_1_is_about_the_size_of_the_step():
    """f_2 = 2 f_1 meets f_2' - f_1' < 0: the theorem then compares an objective with itself at
    twice the learning rate, and 'larger risk reduction' in the strong end says that the flow of
    either raises the risk."""
    right, wrong = strong(4000, 8, 19, False), strong(4000, 8, 20, True)
    a, b = (float(reduction(NLL, contexts).mean()) for contexts in (right, wrong))
    rate = a / (a - b)
    assert b < 0 < a and 0 < rate < 1
    beyond = (1 - rate - 0.01) * a + (rate + 0.01) * b
    assert beyond < 0, "NLL raises the risk"
    assert beyond - 2 * beyond > 0, "so its half is 'better' than itself"


def test_confidently_wrong_models_are_on_the_weak_side():
    """q = .98 on a wrong token, right labels of q = .01: confident, yet NLL lowers the risk 100
    times as fast as -p. The theorem's strength is mass on the true token and the label, not
    confidence."""
    contexts = Contexts(
        torch.tensor([[0.01, 0.98, 0.01]], dtype=F64), torch.tensor([0]), torch.tensor([0])
    )
    assert float(reduction(NLL, contexts)) == pytest.approx(100 * float(reduction(NEG_P, contexts)))
    assert float(contexts.mass) < 0.5
