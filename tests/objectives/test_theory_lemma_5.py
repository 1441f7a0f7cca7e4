"""Appendix G of arXiv:2510.00526: the inequalities of Lemma 5. See test_theory.py."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.theory import (
    F64,
    ascend,
    excess,
    lemma_5_2,
    simplices,
)


def lemma_5_1(q: Tensor) -> Tensor:
    """Left minus right, j = 0."""
    distance = (torch.eye(q.shape[-1], dtype=F64)[0] - q).square().sum(-1)
    return q[..., 0] ** 2 * (distance - 2 * (1 - q[..., 0]) ** 2)


def middle_of_5_3(q: Tensor) -> Tensor:
    a, b = q[..., 0], q[..., 1]
    return 1 + 2 * a**2 + 2 * b**2 + 2 * a * b - 3 * (a + b)


def end_of_5_3(q: Tensor) -> Tensor:
    mass = q[..., 0] + q[..., 1]
    return 1 + 2 * mass**2 - 3 * mass


def test_lemma_5_part_1():
    q = simplices(5000, 6, seed=5)
    assert lemma_5_1(q).max() <= 1e-15
    assert ascend(lemma_5_1, 6)[0] <= 1e-15
    tight = torch.tensor([0.3, 0.7, 0.0], dtype=F64)
    assert float(lemma_5_1(tight)) == pytest.approx(0, abs=1e-16), (
        "equality where the rest is on one token"
    )


def test_lemma_5_part_2():
    bound = (11 * math.sqrt(33) - 59) / 768
    assert bound <= 0.00546
    assert lemma_5_2(simplices(5000, 6, seed=6)).max() <= bound
    best, place = ascend(lambda q: 100 * lemma_5_2(q), 5)
    assert best / 100 == pytest.approx(bound, abs=1e-7)
    x = (9 - math.sqrt(33)) / 24
    torch.testing.assert_close(place[:2], torch.full((2,), x, dtype=F64), rtol=0, atol=5e-3)
    assert float(lemma_5_2(torch.tensor([x, x, 1 - 2 * x], dtype=F64))) == pytest.approx(
        bound, abs=1e-16
    )


def test_lemma_5_part_3_with_the_term_that_print_drops():
    """-q_i - q_j + |q|^2 <= 1 + 2 q_i^2 + 2 q_j^2 + 2 q_i q_j - 3 (q_i + q_j) <= 1 + 2 u^2 - 3 u, u
    = q_i + q_j, everywhere."""
    q = simplices(5000, 6, seed=7)
    for left, right in ((excess, middle_of_5_3), (middle_of_5_3, end_of_5_3)):
        assert (left(q) - right(q)).max() <= 1e-14
        assert ascend(lambda q, left=left, right=right: left(q) - right(q), 6)[0] <= 1e-14
    # in print the middle has -3 q_i only: no longer equal to what stands before it, nor below what
    # follows
    here = torch.tensor([0.0, 0.5, 0.5], dtype=F64)
    printed = middle_of_5_3(here) + 3 * here[1]
    assert float(excess(here)) == float(middle_of_5_3(here)) == float(end_of_5_3(here)) == 0.0
    assert float(printed) == 1.5


def test_the_bound_on_Q_is_one_on_its_last_factor():
    """G.3 bounds |Q| = q_y~ q_y* (u - |q|^2) by .045 where .55 <= u <= .95. That is a *lower* bound
    of u - |q|^2 alone; |Q| has none."""

    def in_band(q: Tensor) -> Tensor:
        mass = q[..., 0] + q[..., 1]
        return (mass >= 0.55) & (mass <= 0.95)

    q = simplices(10_000, 5, seed=8)
    assert (-excess(q)[in_band(q)]).min() >= 0.045 - 1e-12
    worst, _ = ascend(
        lambda q: (
            excess(q)
            - 10 * (0.55 - q[:, 0] - q[:, 1]).relu()
            - 10 * (q[:, 0] + q[:, 1] - 0.95).relu()
        ),
        5,
        in_band,
    )
    assert -0.05 < worst <= -0.045 + 1e-12, "it is attained in the limit"
    tiny = torch.tensor([1e-9, 0.6, 0.4], dtype=F64)
    assert in_band(tiny) and abs(float(lemma_5_2(tiny))) < 1e-9
    assert (excess(q)[q[:, 0] + q[:, 1] > 0.5] <= 0).all(), "u > 1/2 is enough for Q <= 0"
