r"""Formulas as sympy values, and when two of them are equal.

math-verify's reader (latex2sympy2_extended) and its comparison, with four corrections:

- it reads as far as it understands (`0.\overline{3}` as 0, `\frac{1\pm2}{3}` as 2): here a formula
  counts as read where all of it was;
- numbers that differ by more than their precision are not equal, however small they are: 1/2^99 and
  1/2^98 (Math-Verify#14);
- `i` is the imaginary unit (`2i` is \sqrt{-4}), except where it is an index;
- relations that are joined by "or" or "and" and set-builders are sets, on either side
  (Math-Verify#10 has an inequality and its interval one way only).
"""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sympy
from antlr4 import Token
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import LatexExtractionConfig, verify
from math_verify.grader import should_treat_as_complex, unwrap_fcs
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from adaptsft.evals.graders.mathematics.latex import top_level

# Units and arguments without braces have been seen to: math-verify takes `3 \text{ or more}` for
# a 3, and gives braces to the 1 of `\frac{1}{49}\begin{pmatrix} 16`.
_NORMAL_FORM = replace(
    LatexExtractionConfig().normalization_config, units=False, malformed_operators=False
)
_GAMMA = re.compile(r"\\gamma(?![a-zA-Z])")


class _Reader(_Latex2Sympy):
    """latex2sympy, which remembers how far it came."""

    def create_parser(self, latex_str: str) -> Any:
        self.parser = super().create_parser(latex_str)
        return self.parser

    @property
    def at_end(self) -> bool:
        return self.parser.getCurrentToken().type == Token.EOF


@lru_cache(maxsize=4096)
def value(text: str, imaginary: bool = False) -> Any:
    """The sympy value of a formula, or None where it was not understood to its end."""
    # \gamma would be read as the gamma function; it needs the name of another letter
    latex = normalize_latex(_GAMMA.sub(r"\\varsigma ", text), _NORMAL_FORM)
    reader = _Reader(None, not (imaginary or should_treat_as_complex(latex)))
    try:
        found = reader.parse(latex)
        if not reader.at_end or found is None:
            return None
        # dx/dt of unknowns that depend on nothing: 0, whatever else the formula says
        if isinstance(found, sympy.Basic) and (
            found.has(sympy.zoo, sympy.nan)
            or any(derivative.doit() == 0 for derivative in found.atoms(sympy.Derivative))
        ):
            return None
        if isinstance(found, sympy.MatrixExpr):  # a number times a matrix
            found = sympy.Matrix(found.doit()).applyfunc(lambda entry: entry.doit())
        if imaginary:
            found = found.subs({s: sympy.I for s in found.free_symbols if s.name == "i"})
    except Exception:  # whatever a parser raises, it is "not understood"
        return None
    return found


_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[a-zA-Z]+")


def has_imaginary_unit(text: str) -> bool:
    """An `i` on its own, or behind one letter (`a+bi`); not the index of a sum or of a letter."""
    if re.search(r"_\{?i|\\(?:sum|prod)|[a-z]\s*=\s*i|\bi\s*(?:=|\\in)", text):
        return False
    return any(
        "i" in letters and len(letters) <= 2
        for letters in re.findall(r"[a-zA-Z]+", _COMMAND.sub(" ", text))
    )


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
        sets = [
            found or as_solutions(read) for found, read in zip(joined, (one, other), strict=True)
        ]
        if not sets[0] or not sets[1]:
            return False, other is not None or joined[1] is not None
        (x, a), (y, b) = sets
        return (x is None or y is None or x == y) and _same_set(a, b), True
    if one is None or other is None:
        return False, other is not None
    return equal(one, other, options), True


def _inequality(read: Any) -> bool:
    return isinstance(read, Relational) and not isinstance(read, sympy.Equality)


def equal(gold: Any, answer: Any, options: dict[str, Any]) -> bool:
    """verify, corrected for numbers.

    A decimal must agree to one in a thousand however small it is, exact numbers to 25 digits.
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


_BUILDER = re.compile(
    r"(?:\\?\{)?\s*([a-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?R\}?|\\R|\\Re)\s*)?(?::|\||\\mid|\\colon)(.*?)(?:\\?\})?"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])|\\in(?![a-z])")
_OR = re.compile(
    r"\\text\{\s*,?\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:lor|vee|cup)(?![a-z])"
)
_AND = re.compile(
    r"\\text\{\s*,?\s*and\s*\}|(?<![a-zA-Z\\])and(?![a-zA-Z])|\\(?:land|wedge|cap)(?![a-z])|\\&"
)
_MEMBER = re.compile(r"([a-z])\s*\\in\s*(.*)", re.DOTALL)

Solutions = tuple[Any, sympy.Set]  # the unknown, None for a bare set, and its values


def solutions(text: str) -> Solutions | None:
    """Set-builders, and relations joined by or, and, or a comma. None for everything else."""
    if builder := _BUILDER.fullmatch(text.strip()):
        text = builder[2].strip()
    elif not _RELATION.search(text):
        return None
    parts = [part.strip(" ,;") for part in _OR.split(text)]
    if len(parts) > 1:
        return _joined([solutions(part) or _single(part) for part in parts], sympy.Union)
    parts = [part.strip(" ,;") for part in _AND.split(text)]
    if len(parts) > 1:
        return _joined([_single(part) for part in parts], sympy.Intersection)
    items = top_level(text, ",;")
    if len(items) > 1 and all(map(_RELATION.search, items)):
        found = [_single(item) for item in items]
        both = _joined(found, sympy.Intersection)
        # `x < 1, x > 6` can only mean either
        return _joined(found, sympy.Union) if both and both[1] == sympy.S.EmptySet else both
    return _single(text) if builder or _MEMBER.fullmatch(text) else None


def _single(text: str) -> Solutions | None:
    if member := _MEMBER.fullmatch(text):
        found = as_solutions(value(member[2]))
        return (sympy.Symbol(member[1]).name, found[1]) if found else None
    return as_solutions(value(text))


def _joined(parts: list[Solutions | None], join: Any) -> Solutions | None:
    """Sets of one unknown, joined. None where one is no set, or they are of several unknowns."""
    known = [part for part in parts if part]
    unknowns = {unknown for unknown, _ in known if unknown is not None}
    if len(known) < len(parts) or len(unknowns) > 1:
        return None
    return (unknowns.pop() if unknowns else None), join(*(found for _, found in known))


def as_solutions(read: Any) -> Solutions | None:
    """A set, or a relation of one unknown as the set of its real solutions."""
    if isinstance(read, sympy.Set):
        return None, read
    if not isinstance(read, Relational | Boolean):
        return None
    unknowns = read.free_symbols
    if len(unknowns) != 1:
        return None
    unknown = unknowns.pop()
    try:
        # math-verify's symbols are real or have no assumption: one kind for all
        real = unwrap_fcs(read).subs(unknown, sympy.Symbol("x", real=True))
        return unknown.name, real.as_set()
    except Exception:  # sympy cannot solve it
        return None


def _same_set(a: sympy.Set, b: sympy.Set) -> bool:
    try:
        return bool(a == b or sympy.SymmetricDifference(a, b).is_empty)
    except Exception:  # sympy cannot compare them
        return False
