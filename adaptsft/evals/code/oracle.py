"""Whether an output is right, by the rules of evalplus 0.3.1, in the grader's process.

The rules are those of evalplus/eval/__init__.py and _special_oracle.py. `out` was rebuilt by
values.decode, so every object here has a type of the standard library, of numpy, or is `Opaque`: no
method of the code under test can run, and an object that claims to equal everything arrives as one
that equals nothing.
"""

import math
from typing import Any

import numpy as np

from adaptsft.evals.code.problems import Problem

# MBPP: only whether there is a match counts
NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
# MBPP: the order does not count
AS_SETS = (
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
)


def tolerance(atol: float, expected: Any) -> float:
    """The absolute tolerance from this test on.

    A float among the expected outputs raises it for all later tests too, as in evalplus.
    """
    return 1e-6 if atol == 0 and _is_floats(expected) else atol


def is_right(problem: Problem, arguments: Any, out: Any, expected: Any, atol: float) -> bool:
    """Whether `out` is as good as `expected`. Never raises: what cannot be compared is wrong."""
    try:
        return _is_right(problem, arguments, out, expected, atol)
    except Exception:  # unhashable items, ragged arrays, numbers out of range, nesting, …
        return False


def _is_right(problem: Problem, arguments: Any, out: Any, expected: Any, atol: float) -> bool:
    name = problem.entry_point
    also_right = False
    if problem.task_id.startswith("HumanEval/"):
        if name == "find_zero":  # any root will do
            return abs(sum(c * math.pow(out, i) for i, c in enumerate(arguments[0]))) <= atol
    elif name in NOT_NONE:
        return (out if isinstance(out, bool) else out is not None) == (expected is not None)
    elif name in AS_SETS:
        return set(out) == set(expected)
    else:
        also_right = (
            name == "are_equivalent"  # Mbpp/164: its statement does not say what is equivalent
            or (name == "sum_div" and out == 0)
            or (name == "surface_Area" and abs(out - _surface_area(*arguments)) <= atol)
            or (name == "digit_distance_nums" and out == _digit_distance(*arguments))
        )
    if also_right or out == expected:
        return True
    if atol == 0 or type(out) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)) and len(out) != len(expected):
        return False
    return bool(np.allclose(out, expected, rtol=1e-07, atol=atol))


def _is_floats(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype in (np.float32, np.float64)
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _surface_area(edge: float, height: float) -> int:
    """Of a square pyramid, its height taken as the distance from base to apex (Mbpp/581)."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def _digit_distance(one: int, other: int) -> int:
    """Sum of the differences of digits, the shorter number padded with zeros (Mbpp/558)."""
    width = max(len(str(one)), len(str(other)))
    pairs = zip(str(one).zfill(width), str(other).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in pairs)
