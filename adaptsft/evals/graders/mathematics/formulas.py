r"""Formulas as sympy values, read by math-verify's parser (latex2sympy2_extended).

It reads as far as it understands (`0.\overline{3}` as 0, `\frac{1\pm2}{3}` as 2): here a formula
counts as read where all of it was. `i` is the imaginary unit (`2i` is \sqrt{-4}), unless it is an
index.
"""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sympy
from antlr4 import Token
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import LatexExtractionConfig
from math_verify.grader import should_treat_as_complex

# Units and arguments without braces have been seen to: math-verify takes `3 \text{ or more}` for
# a 3, and gives braces to the 1 of `\frac{1}{49}\begin{pmatrix} 16`.
_NORMAL_FORM = replace(
    LatexExtractionConfig().normalization_config, units=False, malformed_operators=False
)
LONGEST, DEEPEST = 1000, 100  # characters and brackets of a formula: the parser takes seconds
# What math-verify takes for something else gets the name of a letter that nobody uses.
_OTHER_NAMES = (
    (re.compile(r"\\gamma(?![a-zA-Z])"), r"\\varsigma "),  # not the gamma function
    (re.compile(r"(?<![a-zA-Z\\])E(?=_)"), r"\\varrho "),  # not Euler's number
    # not 0, because v does not depend on t
    (re.compile(r"\\frac\{d\s*([a-zA-Z])\}\{d\s*([a-z])\}"), r"\1_{\2\2\2}"),
)


class _Reader(_Latex2Sympy):
    """latex2sympy, which remembers how far it came."""

    def create_parser(self, latex_str: str) -> Any:
        self.parser = super().create_parser(latex_str)
        return self.parser

    @property
    def at_end(self) -> bool:
        token = self.parser.getCurrentToken()
        return token is not None and token.type == Token.EOF


@lru_cache(maxsize=4096)
def value(text: str, imaginary: bool = False) -> Any:
    """The sympy value of a formula, or None where it was not understood to its end."""
    if len(text) > LONGEST or text.count("{") != text.count("}") or text.count("(") > DEEPEST:
        return None
    for pattern, name in _OTHER_NAMES:
        text = pattern.sub(name, text)
    latex = normalize_latex(text, _NORMAL_FORM)
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
            found = found.subs({s: sympy.I for s in found.free_symbols if str(s) == "i"})
    except Exception:  # whatever a parser raises, it is "not understood"
        return None
    return found


def number(text: str) -> float | None:
    """The real number that a formula is; None for all else."""
    read = value(text.strip())
    try:
        return float(read) if isinstance(read, sympy.Expr) and read.is_number else None
    except (TypeError, ValueError, OverflowError):  # complex, too large
        return None


_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[a-zA-Z]+")


def has_imaginary_unit(text: str) -> bool:
    """An `i` on its own, or behind one letter (`a+bi`); not the index of a sum or of a letter."""
    if re.search(r"_\{?i|\\(?:sum|prod)|[a-z]\s*=\s*i|\bi\s*(?:=|\\in)", text):
        return False
    return any(
        "i" in letters and len(letters) <= 2
        for letters in re.findall(r"[a-zA-Z]+", _COMMAND.sub(" ", text))
    )
