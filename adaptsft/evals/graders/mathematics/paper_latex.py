"""The parsers of the published math grader, without its hole: no text of a model is ever executed.

That grader tries sympy's LaTeX parser, then sympy's `parse_expr`, then latex2sympy. `parse_expr`
calls `eval`, so that an answer such as `open("/path", "w")` runs. Here the second step reads
Python's syntax tree instead, and admits numbers, names, + - * / ** and brackets only.
"""

import ast
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
import sympy.parsing.latex._parse_latex_antlr as sympy_latex
from latex2sympy2_extended import latex2sympy

# sympy refuses its own ANTLR parser with any runtime but 4.11, while math-verify's needs 4.13. The
# format of generated parsers is the same for the two, so only the checks are switched off: one
# compares versions, the other prints.
sympy_latex.version = lambda distribution_name: "4.11"
for _name in ("LaTeXLexer", "LaTeXParser"):
    setattr(
        sympy_latex,
        _name,
        type(_name, (getattr(sympy_latex, _name),), {"checkVersion": lambda self, version: None}),
    )

_CONSTANTS = {
    "E": sympy.E,
    "I": sympy.I,
    "pi": sympy.pi,
    "oo": sympy.oo,
    "nan": sympy.nan,
    "zoo": sympy.zoo,
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_HARMLESS = re.compile(r"[\w\s\\{}()\[\]+\-*/^=<>.,:;!|&'~%°√π∞×·−–]*")


def _python_value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Constant(value=float(value)):
            return sympy.Float(value)
        case ast.Name(id=name):
            return _CONSTANTS.get(name, sympy.Symbol(name))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_python_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_python_value(left), _python_value(right))
        case ast.Tuple(elts=items):
            return tuple(map(_python_value, items))
        case ast.List(elts=items):
            return list(map(_python_value, items))
        case ast.Set(elts=items):
            return set(map(_python_value, items))
        case ast.Dict(keys=[], values=[]):
            return {}
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def parse_python(text: str) -> Any:
    """A sympy expression, or a tuple, list or set of them, from arithmetic in Python's syntax.

    Raises on anything else.
    """
    return _python_value(ast.parse(text.strip(), mode="eval").body)


@lru_cache(maxsize=4096)
def parse(text: str) -> Any:
    """What the published grader compares: the first parser's result, or the text if all fail.

    Like there, sympy's LaTeX parser reads as far as it understands and drops the rest (`1,-2` is
    1), and each parser sees the text first with its double backslashes halved, then as it is.
    """
    if not _HARMLESS.fullmatch(text):
        return text
    for parser in (sympy_latex.parse_latex, parse_python, latex2sympy):
        for variant in (text.replace("\\\\", "\\"), text):
            try:
                return parser(variant)
            except Exception:  # whatever a parser raises, it is "not understood"
                continue
    return text
