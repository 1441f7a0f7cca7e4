"""Judging outputs."""

import numpy as np
import pytest

from adaptsft.evals.code import oracle, values
from adaptsft.evals.code.problems import Problem


@pytest.mark.parametrize(
    ("task", "function", "arguments", "out", "expected", "atol", "right"),
    [
        ("HumanEval/9", "f", [], [1, 2], [1, 2], 0, True),
        ("HumanEval/9", "f", [], (1, 2), [1, 2], 0, False),
        ("HumanEval/9", "f", [], 1, True, 0, True),
        ("HumanEval/9", "f", [], 1.0 + 1e-9, 1.0, 1e-6, True),
        ("HumanEval/9", "f", [], 1.0 + 1e-5, 1.0, 1e-6, False),
        # near, but of another type
        ("HumanEval/9", "f", [], np.float64(1.0 + 1e-9), 1.0, 1e-6, False),
        ("HumanEval/9", "f", [], [1.0, 2.0, 3.0], [1.0, 2.0], 1e-6, False),
        ("HumanEval/9", "f", [], float("nan"), float("nan"), 1e-6, False),
        ("HumanEval/9", "f", [], values.Opaque("Any"), values.Opaque("Any"), 0, False),
        ("HumanEval/9", "f", [], np.array([1, 2]), [1, 2], 0, False),
        ("HumanEval/32", "find_zero", [[-6.0, 11.0, -6.0, 1.0]], 3.0, 1.0, 1e-4, True),
        ("HumanEval/32", "find_zero", [[-6.0, 11.0, -6.0, 1.0]], 3.1, 1.0, 1e-4, False),
        ("HumanEval/32", "find_zero", [[1.0, 1.0]], values.Opaque("Any"), -1.0, 1e-4, False),
        ("Mbpp/2", "similar_elements", [], [5, 4, 4], (4, 5), 0, True),
        ("Mbpp/2", "similar_elements", [], values.Opaque("map", [5, 4]), (4, 5), 0, True),
        ("Mbpp/2", "similar_elements", [], None, (4, 5), 0, False),
        ("Mbpp/72", "check_str", ["ab"], values.Opaque("Match"), values.Opaque("Match"), 0, True),
        ("Mbpp/72", "check_str", ["ab"], False, values.Opaque("Match"), 0, False),
        ("Mbpp/164", "are_equivalent", [1, 2], False, True, 0, True),
        ("Mbpp/295", "sum_div", [7], 0, 1, 0, True),
        ("Mbpp/558", "digit_distance_nums", [1, 21], 2, 1, 0, True),
        ("Mbpp/581", "surface_Area", [3, 4], 35, 33, 0, True),
    ],
)
def test_oracle(
    task: str,
    function: str,
    arguments: list,
    out: object,
    expected: object,
    atol: float,
    right: bool,
) -> None:
    assert (
        oracle.is_right(Problem(task, function, "", [], [], 0), arguments, out, expected, atol)
        is right
    )


def test_a_float_among_the_outputs_brings_a_tolerance() -> None:
    assert [oracle.tolerance(0, value) for value in (1, 1.0, (1.0, 2.0), [1.0, 2], [])] == [
        0,
        1e-6,
        1e-6,
        0,
        0,
    ]
    assert oracle.tolerance(1e-4, 1.0) == 1e-4
