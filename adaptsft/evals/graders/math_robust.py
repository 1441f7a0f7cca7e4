r"""The math grader that aims to be right: math-verify, with its known errors corrected.

math-verify (huggingface/Math-Verify, 0.9) extracts and compares: sets and lists in any order,
intervals, equations, matrices, units, and percentages. Added here, each for a cause:

- `4.5e33` would be read as 4.5 * e * 33: it becomes `4.5 \times 10^{33}` (58 of the 272 Minerva
  golds are written so);
- golds of data sets come without delimiters, or with inverted ones (`69$,$84` in OlympiadBench):
  they are wrapped in dollars, as are bare predictions; otherwise of `3x + 4y + 14 = 0` only the 0
  would be read (Math-Verify#60);
- `10{,}000`, `10\,000`, `\$6`, `\mathrm{e}` and `\sqrt(2)` are rewritten before they are misread
  (Math-Verify#14, #41);
- a list that is abbreviated by dots is compared as text: only its beginning would be read
  (Math-Verify#14);
- numbers that differ by more than their precision are not equal, however small they are: 1/2^99 and
  1/2^98 (Math-Verify#14);
- an inequality and the interval of its solutions are equal, whichever of them the gold is
  (Math-Verify#10 has it one way only).

Runs without time limits of its own (math-verify's SIGALRM fails outside the main thread,
Math-Verify#55, and hangs remain, #65): only in a process that can be killed (pool.py).
"""

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from math_verify import (
    ExprExtractionConfig,
    LatexExtractionConfig,
    StringExtractionConfig,
    parse,
    verify,
)

from adaptsft.errors import DataError
from adaptsft.evals.graders.math_text import last_box

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off

_LETTERS = StringExtractionConfig(strings=tuple("ABCDEFGHIJ"))
MATCH_TYPES = {
    "latex": LatexExtractionConfig(),
    "expr": ExprExtractionConfig(),
    "string": _LETTERS,
    "NativeLetters": _LETTERS,
}

_AND = r"(?:\\quad|\\ |[\s,])*\\text\s*\{\s*(?:and|or)\s*\}(?:\\quad|\\ |\s)*"
_REWRITES = (
    (re.compile(r"\\\$"), ""),
    (re.compile(r"\\(?:mathrm|rm|operatorname)\s*\{\s*([ei])\s*\}"), r"\1"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\!|\\[,;:])\s*(?=\d{3}(?!\d))"), ""),  # thousands
    # `p=5, q=2 \text{ and } p=7, q=2`: two solutions of two equations each, not one of four
    (re.compile(rf"(=[^=;$]*,[^=;$]*=[^=;$]*?){_AND}(?=[^=;$]*=[^=;$]*,[^=;$]*=)"), r"\1; "),
)
_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.]*\w)")
_MATH = re.compile(r"(\$\$.*?\$\$|\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\])", re.DOTALL)
_DOTS = re.compile(r"\\[lcd]?dots[a-z]?(?![a-zA-Z])|\.\.\.|…")
_DELIMITERS_BUT_DOLLAR = re.compile(r"\\boxed|\\\(|\\\[|\$\$|\\begin\{(?:align|equation|gather)")
_SEPARATOR = re.compile(r"[\s,;.]*(?:and|or)?[\s,;.]*")
_COMMAND = re.compile(
    r"\\(?:text|mathrm|textbf|textnormal|mbox|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_PROSE = re.compile(
    r"[^\W\d_]{2,}[^\w=+*/<>-]*\s[^\w=+*/<>-]*[^\W\d_]{2,}|[\u3040-\u30ff\u4e00-\u9fff]"
)


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _powers_of_ten(text: str) -> str:
    """e-notation as a power of ten, between dollars where the text around it is not mathematics."""
    parts = _MATH.split(text)  # what is outside, a formula, what is outside, ...
    return "".join(
        _E_NOTATION.sub(r"\1 \\times 10^{\2}" if i % 2 else r"$\1 \\times 10^{\2}$", part)
        for i, part in enumerate(parts)
    )


def _is_prose(text: str) -> bool:
    """Two words in a row, outside of LaTeX commands: a sentence, not a formula."""
    return _PROSE.search(_COMMAND.sub(" ; ", text)) is not None


def _delimited(text: str) -> str:
    """A bare or wrongly delimited formula between dollars.

    Text that math-verify can take apart itself stays as it is, except for e-notation.
    """
    if not _DELIMITERS_BUT_DOLLAR.search(text) and not _is_prose(text):
        parts = text.split("$")
        # Bare, or without the outer dollars of its source: commas alone between dollars, or one
        # dollar too many and no words (a price).
        stray = len(parts) % 2 == 0 and not _WORD.search(_COMMAND.sub(" ", text))
        if stray or (len(parts) % 2 and all(_SEPARATOR.fullmatch(part) for part in parts[1::2])):
            bare = text.replace("$", "").strip().rstrip(".").rstrip()
            if re.fullmatch(r"-?\d{1,3}( \d{3})+(\.\d+)?", bare):
                bare = bare.replace(" ", "")
            text = f"${bare}$"
    return _powers_of_ten(text)


@lru_cache(maxsize=4096)
def _parse(text: str, match_types: tuple[str, ...]) -> list:
    """math-verify's [value, text], [text] where it understood nothing, or []."""
    return parse(text, [MATCH_TYPES[name] for name in match_types], parsing_timeout=None)  # pyrefly: ignore[bad-argument-type]


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


def _equal(gold: Any, answer: Any, options: dict) -> bool:
    """verify, corrected for numbers.

    A decimal must agree to one in a thousand however small it is, exact numbers to 12 digits.
    """
    correct = verify(gold, answer, timeout_seconds=None, **options)  # pyrefly: ignore[bad-argument-type]
    decimal = any(isinstance(x, sympy.Expr) and x.has(sympy.Float) for x in (gold, answer))
    if not correct and not decimal:
        return False
    numbers = _relative_difference(gold, answer)
    if numbers is None:
        return correct
    difference, size = numbers
    # From 0.001 on, the six decimals that verify compares are at least three digits.
    return difference <= 1e-12 or (correct and decimal and (size >= 0.001 or difference <= 0.001))


def _plain(text: str) -> str:
    r"""Text without what never matters.

    Spaces, dollars, \left and \right, the size of fractions, a full stop.
    """
    return (
        re.sub(r"\s|\\left(?![a-z])|\\right(?![a-z])|\$", "", text)
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
        .rstrip(".")
    )


def grade(record: dict) -> dict:
    """`prediction` and `response` are both read as text that holds an answer.

    Optional keys: `match_types`, the ways of extraction to keep to (then nothing is delimited
    here); `precision`, decimals (6); math-verify's `strict` and `allow_set_relation_comp`.
    """
    asked = record.get("match_types")
    unknown = set(asked or ()) - set(MATCH_TYPES)
    if unknown:
        raise DataError(
            f"match_types holds {', '.join(sorted(unknown))}; the known ones are "
            f"{', '.join(MATCH_TYPES)}"
        )
    options = {
        "float_rounding": record.get("precision", 6),
        "strict": record.get("strict", True),
        "allow_set_relation_comp": record.get("allow_set_relation_comp", True),
    }
    match_types = tuple(asked or ("latex", "expr"))
    gold = _rewrite(str(record["gold"]))
    text = _rewrite(record["response"] if "response" in record else record["prediction"])
    box = last_box(text) if "\\boxed" in text else ""
    if not asked:
        gold = _delimited(gold)
        if box and _plain(box) == _plain(gold):
            return {"correct": True, "extracted": box, "unparsed": False}
        text = _powers_of_ten(f"${box}$") if _E_NOTATION.search(box) else _delimited(text)

    answers = _parse(text, match_types)
    extracted = next(
        (answer for answer in reversed(answers) if isinstance(answer, str)),
        box or (str(answers[0]) if answers else ""),
    )
    if _DOTS.search(gold):
        correct = (
            re.search(rf"(?<![\w,.]){re.escape(_plain(gold))}$", _plain(box or text)) is not None
        )
    elif _DOTS.search(box or extracted):
        correct = False
    else:
        correct = any(_equal(g, a, options) for g in _parse(gold, match_types) for a in answers)
    return {"correct": correct, "extracted": extracted, "unparsed": not answers}
