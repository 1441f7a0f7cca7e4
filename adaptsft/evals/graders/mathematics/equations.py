r"""Equations that name what they define: `\frac{dy}{dx} = 2x`, `f'(x) = 2x`, `\angle ABC = 30`."""

import re

from adaptsft.evals.graders.mathematics.latex import Equal, squeeze
from adaptsft.evals.graders.mathematics.notations import labels

_DIFFERENTIAL = r"(?:\\text\{d\}|d|\\partial)"
_FRACTION = re.compile(
    rf"\\frac\{{{_DIFFERENTIAL}(?:\^\{{?(\d)\}}?)?([a-zA-Z])\}}"
    rf"\{{{_DIFFERENTIAL}([a-z])(?:\^\{{?\d\}}?)?\}}"
)
_PRIMES = re.compile(r"([a-zA-Z])(?:('+)|\^\{?((?:\\prime)+)\}?|\^\{?\((\d)\)\}?)(?:\(([a-z])\))?")
_DOTS = re.compile(r"\\(d?)dot\{?([a-z])\}?")
_NAME = re.compile(
    r"[a-zA-Z](?:_\{?\w+\}?)?(?:\^\{-1\})?(?:\([a-z\d](?:,[a-z])*\))?"  # y, S_n, f^{-1}(x), g(x,y)
    r"|m?\\angle\{?[A-Z]{1,3}\}?|\\(?:overline|vec|hat)\{?\w+\}?|\\[a-z]+|[A-Z]{2,3}|\\text\{[^{}]*\}"
)


def _named(text: str) -> tuple[str, str] | None:
    """The name before the only equals sign, squeezed, and what it equals."""
    name, equals, value = text.partition("=")
    name = squeeze(name)
    if not equals or "=" in value or name.endswith(("<", ">", "!", ":")) or not value.strip():
        return None
    return name, value.strip()


def _derivative(name: str) -> tuple[str, int, str] | None:
    """The function, how many times it is derived, and by what: "" where that is not said."""
    short = re.fullmatch(r"d([a-zA-Z])/d([a-z])", name)
    if short:
        return short[1], 1, short[2]
    if fraction := _FRACTION.fullmatch(name):
        return fraction[2], int(fraction[1] or 1), fraction[3]
    if primes := _PRIMES.fullmatch(name):
        letter, marks, commands, number, by = primes.groups()
        order = len(marks or "") or (commands or "").count("\\") or int(number or 1)
        return letter, order, by or ""
    if dots := _DOTS.fullmatch(name):
        return dots[2], 1 + len(dots[1]), "t"
    return None


def _same_derivative(one: tuple[str, int, str], other: tuple[str, int, str]) -> bool:
    return one[:2] == other[:2] and (one[2] == other[2] or "" in (one[2], other[2]))


_NUMBERED = re.compile(r"[a-zA-Z]'*\((-?\d+)\)|m?\\angle\{?[A-Z]{3}\}?")


def named(gold: str, answer: str, equal: Equal) -> bool | None:
    """Two equations for one derivative or function agree where their right sides do.

    math-verify reads `dy/dx = 2x` as a differential equation, and finds all of them alike.
    """
    one, other = _named(gold), _named(answer)
    left, right = (found and _derivative(found[0]) for found in (one, other))
    if one and other:
        if left and right:
            return _same_derivative(left, right) and equal(one[1], other[1])
        if one[0] == other[0] and _NAME.fullmatch(one[0]):
            return equal(one[1], other[1])
        if left or right:  # f' is not f
            return False
        if _NUMBERED.fullmatch(one[0]) and _NUMBERED.fullmatch(other[0]):  # f(2) is not f(3)
            return labels(one[0], other[0], equal) is True and equal(one[1], other[1])
        return None
    if one and left and "=" not in answer:
        return equal(one[1], answer)
    if other and right and "=" not in gold:  # a derivative was asked for, not that of another order
        return right[1] == 1 and equal(gold, other[1])
    return None
