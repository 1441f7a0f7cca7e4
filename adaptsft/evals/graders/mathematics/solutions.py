r"""Inequalities, set-builders and unions as sets of real numbers.

`x<1 \text{ or } x>6`, `\{x \mid x>2\}`, `x \in [1,2]`: math-verify has an inequality and its
interval one way only (Math-Verify#10), and reads "or" as a list.
"""

import re
from typing import Any

import sympy
from math_verify.grader import unwrap_fcs
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from adaptsft.evals.graders.mathematics.formulas import value
from adaptsft.evals.graders.mathematics.latex import top_level

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

Solutions = tuple[str | None, sympy.Set]  # the unknown, None for a bare set, and its values


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
        return (member[1], found[1]) if found else None
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
        relation: Any = unwrap_fcs(read).subs(unknown, sympy.Symbol("x", real=True))
        return str(unknown), relation.as_set()
    except Exception:  # sympy cannot solve it
        return None


def same_set(a: sympy.Set, b: sympy.Set) -> bool:
    try:
        return bool(a == b or sympy.SymmetricDifference(a, b).is_empty)
    except Exception:  # sympy cannot compare them
        return False
