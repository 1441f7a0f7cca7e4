"""When two formulas are equal: math-verify's verify, corrected for numbers, and sets."""

from typing import Any

import sympy
from math_verify import verify
from sympy.core.relational import Relational

from adaptsft.evals.graders.mathematics.formulas import has_imaginary_unit, value
from adaptsft.evals.graders.mathematics.solutions import as_solutions, same_set, solutions


def equal_values(gold: str, answer: str, options: dict[str, Any]) -> tuple[bool, bool]:
    """Whether two formulas are equal, and whether the answer was understood."""
    imaginary = has_imaginary_unit(gold) or has_imaginary_unit(answer)
    one, other = value(gold, imaginary), value(answer, imaginary)
    joined = solutions(gold), solutions(answer)
    if not any(joined) and _inequality(one) and _inequality(other):
        if equal(one, other, options):
            return True, True
        joined = as_solutions(one), as_solutions(other)  # 2x > 6 is x > 3
    if any(joined):
        left, right = joined[0] or as_solutions(one), joined[1] or as_solutions(other)
        if not left or not right:
            return False, other is not None or joined[1] is not None
        (x, a), (y, b) = left, right
        return (x is None or y is None or x == y) and same_set(a, b), True
    if one is None or other is None:
        return False, other is not None
    return equal(one, other, options), True


def _inequality(read: Any) -> bool:
    return isinstance(read, Relational) and not isinstance(read, sympy.Equality)


def equal(gold: Any, answer: Any, options: dict[str, Any]) -> bool:
    """verify, corrected for numbers.

    A decimal must agree to one in a thousand however small it is, exact numbers to 25 digits:
    1/2^99 and 1/2^98 are not equal (Math-Verify#14).
    """
    correct = verify(gold, answer, timeout_seconds=None, **options)  # pyrefly: ignore[bad-argument-type]
    decimal = any(isinstance(x, sympy.Expr) and x.has(sympy.Float) for x in (gold, answer))
    if not correct and not decimal:
        return False
    numbers = _relative_difference(gold, answer)
    if numbers is None:
        return correct
    difference, size = numbers
    if not decimal:
        return difference <= 1e-25
    # From 0.001 on, the six decimals that verify compares are at least three digits.
    return difference <= 1e-12 or (correct and (size >= 0.001 or difference <= 0.001))


def _relative_difference(a: Any, b: Any) -> tuple[float, float] | None:
    """|a - b| / max(|a|, |b|), and the maximum.

    None where they are not two numbers, or one is a percentage (50 % equals 50 and 1/2).
    """
    if not all(
        isinstance(x, sympy.Expr) and x.is_number and not x.has(sympy.UnevaluatedExpr)
        for x in (a, b)
    ):
        return None
    x, y = a.evalf(30), b.evalf(30)
    try:
        size = max(abs(x), abs(y))
        return (float(abs(x - y) / size) if size != 0 else 0.0), float(size)
    except TypeError:  # one has no value: zoo, nan
        return None
