r"""The math grader that aims to be right: math-verify, with its known errors corrected.

An answer is found (answer.py), rewritten (rules.py), compared as text, then by the forms of
forms.py, which decide alone where a pair is of their kind; its unit is taken off (units.py), and
only then do math-verify and sympy compare (formulas.py, equality.py, solutions.py). Text first:
what is the same text needs no parser that can hang. Each rule and form holds the case that it is
for, and docs/graders.md lists them. Where no answer stands in a box or alone, math-verify looks
for it in the prose.

Runs without time limits of its own (math-verify's SIGALRM fails outside the main thread,
Math-Verify#55, and hangs remain, #65): only in a process that can be killed (pool.py).
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from math_verify import (
    ExprExtractionConfig,
    LatexExtractionConfig,
    StringExtractionConfig,
    parse,
)

from adaptsft.errors import DataError
from adaptsft.evals.graders.mathematics import units as math_units
from adaptsft.evals.graders.mathematics.answer import boxed, of_this_question, stated
from adaptsft.evals.graders.mathematics.equality import equal, equal_values
from adaptsft.evals.graders.mathematics.forms import FORMS, words_of
from adaptsft.evals.graders.mathematics.latex import squeeze, without_outer_brackets
from adaptsft.evals.graders.mathematics.rules import rewrite, several_solutions
from adaptsft.evals.graders.mathematics.unicode import to_latex
from adaptsft.evals.graders.registry import GRADERS

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off

_LETTERS = StringExtractionConfig(strings=tuple("ABCDEFGHIJ"))
MATCH_TYPES = {
    "latex": LatexExtractionConfig(),
    "expr": ExprExtractionConfig(),
    "string": _LETTERS,
    "NativeLetters": _LETTERS,
}
LONGEST = 2000  # characters of an answer that is more than compared as text
DEEPEST = 8  # forms within forms
# "the answer is less than 5" is not 5
_NO_VALUE = re.compile(
    r"(?:less|more|greater|fewer|larger|smaller|at least|at most|between|not|no)\b", re.IGNORECASE
)

_DELIMITERS_BUT_DOLLAR = re.compile(r"\\boxed|\\\(|\\\[|\$\$|\\begin\{(?:align|equation|gather)")
_SEPARATOR = re.compile(r"[\s,;.]*(?:and|or)?[\s,;.]*")
_COMMAND = re.compile(
    r"\\(?:text|mathrm|textbf|textnormal|mbox|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_SENTENCE = re.compile(r"[a-z]{3}.*[:=]")
_PROSE = re.compile(
    r"[^\W\d_]{2,40}[^\w=+*/<>-]{0,9}\s[^\w=+*/<>-]{0,9}[^\W\d_]{2,40}|[\u3040-\u30ff\u4e00-\u9fff]"
)
_LONG_NUMBER = re.compile(r"\d{400}")
_EXACT = re.compile(r"([-+]?)(?:(\d+(?:,\d{3})*)(\.\d+)?|\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")


def grade(record: dict) -> dict:
    """The verdict on `response`, a whole answer; without one on `prediction`, its result.

    Optional keys: `units`, "ignore" (default) or "strict"; `match_types`, the ways of extraction
    to keep to (then the text is left to math-verify as it is); `precision`, decimals (6);
    math-verify's `strict` and `allow_set_relation_comp`.
    """
    options = {
        "float_rounding": record.get("precision", 6),
        "strict": record.get("strict", True),
        "allow_set_relation_comp": record.get("allow_set_relation_comp", True),
    }
    gold = str(record["gold"])
    text = record["response"] if "response" in record else record["prediction"]
    if asked := record.get("match_types"):
        return _by_math_verify(gold, text, tuple(asked), options)
    allowed = GRADERS["math-robust"].optional["units"].choices
    if (units := record.get("units", "ignore")) not in allowed:
        raise DataError(f"units is {units!r}; it must be {' or '.join(allowed)}")

    gold = _bare(to_latex(gold)) or gold
    text = of_this_question(text)
    answer = boxed(text)
    words = False  # "Total: 3 + 4 = 7 sheep": math-verify may find what is not read here
    if answer is None:
        text = to_latex(text)
        statement = stated(text)
        if statement and _NO_VALUE.match(statement) and words_of(gold) is None:
            return {"correct": False, "extracted": statement, "unparsed": False}
        answer = _bare(statement or text)
        words = answer is not None and _SENTENCE.search(_COMMAND.sub(" ", answer)) is not None
    if answer is not None:
        # What was not understood to its end is wrong unless it is the gold's text: math-verify
        # would read its beginning.
        found = bool(answer.strip())
        correct = found and _correct(gold, answer, units, options)
        if correct or not words:
            return {"correct": bool(correct), "extracted": answer, "unparsed": not found}
    if "response" not in record and _correct(gold, text, units, options):  # words
        return {"correct": True, "extracted": text, "unparsed": False}
    return _in_prose(gold, text, units, options)


def _correct(
    gold: str, answer: str, units: str, options: dict[str, Any], depth: int = 0
) -> bool | None:
    """Whether an answer equals a gold. None: it is not the same text, and was not understood."""
    gold, answer = without_outer_brackets(gold), without_outer_brackets(answer)
    if squeeze(gold) == squeeze(answer):
        return True
    longest = max(len(gold), len(answer))
    if depth > DEEPEST or longest > LONGEST or _LONG_NUMBER.search(gold + answer):
        return False
    gold, answer = rewrite(gold), rewrite(answer)
    if squeeze(gold) == squeeze(answer):
        return True

    def again(one: str, other: str) -> bool:
        return _correct(one, other, units, options, depth + 1) or False

    for form in FORMS:
        if (decided := form.decide(gold, answer, again)) is not None:
            return decided
    gold, asked = math_units.split(gold, letters=False)
    variables = re.search(r"[a-zA-Z]", _COMMAND.sub(" ", gold)) is not None
    answer, given = math_units.split(answer, letters=not variables)
    if units == "strict" and asked and math_units.normal(asked) != math_units.normal(given):
        return False
    if (asked or given) and squeeze(gold) == squeeze(answer):
        return True
    if "\\ldots" in gold + answer:  # of a list that is abbreviated only the beginning would be read
        return False
    exact = _exact(gold), _exact(answer)
    if None not in exact and (exact[0] == exact[1] or "." not in gold + answer):
        return exact[0] == exact[1]
    correct, understood = equal_values(gold, answer, options)
    return correct if understood else None


def _exact(text: str) -> Fraction | None:
    """An integer, a decimal or a fraction of integers: most answers, which need no parser."""
    found = _EXACT.fullmatch(squeeze(text))
    if not found:
        return None
    sign, whole, decimals, *fraction = found.groups()
    try:
        if whole:
            number = Fraction(whole.replace(",", "") + (decimals or ""))
        else:
            number = Fraction(*(int(part) for part in fraction if part))
    except (ValueError, ZeroDivisionError):  # thousands of digits; x/0
        return None
    return -number if sign == "-" else number


def _in_prose(gold: str, text: str, units: str, options: dict[str, Any]) -> dict:
    """math-verify looks for the answer between words, and reads it."""
    answers = _parse(text, ("latex", "expr"))
    extracted = _text_of(answers)
    correct = _correct(gold, extracted, units, options) if extracted else False
    if correct is None:
        golds = _parse(f"${gold}$", ("latex", "expr"))
        correct = any(equal(g, a, options) for g in golds for a in answers)
    return {"correct": correct, "extracted": extracted, "unparsed": not answers}


def _by_math_verify(
    gold: str, text: str, match_types: tuple[str, ...], options: dict[str, Any]
) -> dict:
    unknown = set(match_types) - set(MATCH_TYPES)
    if unknown:
        raise DataError(
            f"match_types holds {', '.join(sorted(unknown))}; the known ones are "
            f"{', '.join(MATCH_TYPES)}"
        )
    answers = _parse(several_solutions(text), match_types)
    extracted = _text_of(answers)
    golds = _parse(several_solutions(gold), match_types)
    correct = any(equal(g, a, options) for g in golds for a in answers)
    return {"correct": correct, "extracted": extracted, "unparsed": not answers}


def _text_of(answers: list) -> str:
    texts = [answer for answer in answers if isinstance(answer, str)]
    return texts[-1] if texts else str(answers[0]) if answers else ""


@lru_cache(maxsize=4096)
def _parse(text: str, match_types: tuple[str, ...]) -> list:
    """math-verify's [value, text], [text] where it understood nothing, or []."""
    return parse(text, [MATCH_TYPES[name] for name in match_types], parsing_timeout=None)  # pyrefly: ignore[bad-argument-type]


def _is_prose(text: str) -> bool:
    """Two words in a row, outside of LaTeX commands: a sentence, not a formula."""
    return _PROSE.search(_COMMAND.sub(" ; ", text)) is not None


def _bare(text: str) -> str | None:
    """A formula that stands alone, without its dollars. None for text that holds one somewhere."""
    text = text.strip().replace("\\$", "")
    lines = "\n" in text and "\\begin" not in text
    if lines or _DELIMITERS_BUT_DOLLAR.search(text) or _is_prose(text):
        return None
    # Without the outer dollars of its source (`69$,$84` in OlympiadBench): commas alone between
    # dollars, or one dollar too many and no words (a price).
    parts = text.split("$")
    stray = len(parts) % 2 == 0 and not _WORD.search(_COMMAND.sub(" ", text))
    if stray or (len(parts) % 2 and all(_SEPARATOR.fullmatch(part) for part in parts[1::2])):
        return re.sub(r"(?<!\.)\.$", "", text.replace("$", "").strip()).rstrip()
    return None
