r"""Forms of answers that are compared in a way of their own, before math-verify reads them.

Each form is a function of a gold and an answer (LaTeX, rewritten by rules.py): True or False where
it decides, None where the pair is not of its form. FORMS are asked in their order. As rules do,
each says what it is for by a pair that is right because of it and one that it must not make right.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from adaptsft.evals.graders.mathematics.equations import named
from adaptsft.evals.graders.mathematics.formulas import number
from adaptsft.evals.graders.mathematics.latex import Equal, squeeze
from adaptsft.evals.graders.mathematics.lists import plus_minus, repeated, several_unknowns
from adaptsft.evals.graders.mathematics.notations import (
    bases,
    labels,
    points,
    ratios,
    residues,
    times,
)


@dataclass(frozen=True)
class Form:
    name: str
    decide: Callable[[str, str, Equal], bool | None]
    right: tuple[str, str]  # a gold, and an answer that equals it
    wrong: tuple[str, str]  # a gold, and an answer that does not


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:an?|the) ")
_PLURAL = re.compile(r"(?<=[a-z]{3})s\b")


def words_of(text: str) -> str | None:
    r"""Lower-case words, where a text is nothing else: `\text{No solutions.}` is `no solution`."""
    plain = _TEXT.sub(r" \1 ", text)
    if re.search(r"[\\^_=<>{}$|]", plain) or not re.search(r"[^\W\d_]{2,}", plain):
        return None
    plain = " ".join(re.sub(r"[^\w\s'-]", " ", plain).split()).lower()
    return _PLURAL.sub("", _ARTICLE.sub("", plain))


def words(gold: str, answer: str, equal: Equal) -> bool | None:
    """Words are compared as words; a formula of letters (`ab`, `ABC`) is not one."""
    if "\\text" not in gold + answer and not re.search(r"[^\W\d_]{3,}", gold):
        return None
    one, other = words_of(gold), words_of(answer)
    return True if one is not None and one == other else None


_CHOICE = re.compile(
    r"(?:\\text\{)?\s*(?:\((?P<a>[A-J])\)|(?P<b>[A-J])\)|(?P<c>[A-J])[.:]|(?P<d>[A-J])(?=\}))"
    r"\s*\}?\s*[.:]?\s*(?P<rest>.*)"
)
_LETTER = re.compile(r"\(?([A-J])\)?[.:]?")
# `(A) or (B)`, `B. 7 and C`
_OTHER = re.compile(r"\([A-J]\)|(?:^|\band\b|\bor\b|,|\\text\{\s*(?:and|or)\s*\})\s*[A-J](?![\w^])")


def _labelled(text: str) -> tuple[str, str] | None:
    """`(C) 40` as C and 40."""
    found = _CHOICE.fullmatch(text.strip())
    if not found:
        return None
    rest = found["rest"].strip()
    if rest.count("}") > rest.count("{"):  # \text{C. Rome}
        rest = rest.rstrip("}").strip()
    return next(filter(None, found.groups()[:4])), rest


def choices(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""`\text{(C) }40` answers with a choice and with what it says: either may be the gold."""
    one, other = _labelled(gold), _labelled(answer)
    asked, given = _LETTER.fullmatch(squeeze(gold)), _LETTER.fullmatch(squeeze(answer))
    if other and asked:
        return other[0] == asked[1] and not _OTHER.search(other[1])
    if one and given:
        return one[0] == given[1]
    if one and other and one[1] and other[1]:
        return one[0] == other[0] and equal(one[1], other[1])
    if other and other[1] and not one:
        return equal(gold, other[1])
    if one and one[1] and not other:
        return equal(one[1], answer)
    return None


_PERCENT = re.compile(
    r"(.*?)\s*(?:\\?%|\\text\{\s*(?:percent|per cent|pct)\s*\}|percent|per cent|pct)\s*"
)


def percentages(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""Where a percentage is asked for, `12.5`, `0.125` and `12.5\%` say it; 0.2 is not 0.2 %."""
    one, other = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    if one and other:
        return equal(one[1], other[1])
    percent = one or other
    if not percent:
        return None
    plain = answer if one else gold
    size = number(percent[1])
    pairs = [rf"\frac{{{percent[1]}}}{{100}}"]
    pairs += [percent[1]] if size is not None and abs(size) >= 1 else []
    return any(equal(share, plain) if one else equal(plain, share) for share in pairs)


_APPROXIMATELY = re.compile(
    r"""
    ,?\s*\(? (?: \\approx(?![a-z]) | (?:or\ )?(?:approximately|approx\.?)
      | \\text\{\s*\(?\s*(?:or\ )?(?:about|approximately|approx\.?)\s*\)?\s*\} ) \)? \s*
    """,
    re.VERBOSE,
)


def approximations(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""Of `2\pi \approx 6.28` the first number counts, the second where the gold is a decimal that
    the first rounds to."""
    if not _APPROXIMATELY.search(gold) and not _APPROXIMATELY.search(answer):
        return None
    one, other = (
        [part.strip() for part in _APPROXIMATELY.split(text) if part.strip(" ()")]
        for text in (gold, answer)
    )
    if not one or not other:
        return None
    if equal(one[0], other[0]):
        return True
    digits = re.fullmatch(r"-?\d*\.(\d+)", one[0])
    exact = number(other[0])
    if not digits or exact is None or len(other) < 2:
        return False
    return abs(exact - float(one[0])) <= 0.5 * 10.0 ** -len(digits[1]) and equal(one[0], other[-1])


FORMS = (
    Form("words", words, (r"\text{No solution}", "no solutions"), (r"\text{odd}", r"\text{even}")),
    Form("choices", choices, ("40", r"\textbf{(C) }40"), ("40", r"\textbf{(C) }41")),
    Form("bases", bases, ("4210_5", r"4210_{\text{five}}"), ("1101_2", "1101_8")),
    Form(
        "times", times, (r"5{:}30\text{ PM}", "5:30 p.m."), (r"12{:}30\text{ a.m.}", "12:30 p.m.")
    ),
    Form("ratios", ratios, ("2:3:5", "4 : 6 : 10"), ("2:5:3", "2:3:5")),
    Form("residues", residues, (r"x\equiv 3\pmod 5", r"8 \pmod{5}"), (r"3\pmod{7}", r"3\pmod{5}")),
    Form("labels", labels, (r"\angle ABC", "∠CBA"), (r"\angle ABC", r"\angle ACB")),
    Form("points", points, ("(3,4)", "P(3,4)"), ("35", "C(7,2)")),
    Form(
        "named equations",
        named,
        (r"\frac{dy}{dx}=2x", "y'=x+x"),
        (r"\frac{dy}{dx}=3x", r"\frac{dy}{dx}=2x"),
    ),
    Form("percentages", percentages, (r"12.5\%", "12.5"), ("0.2", r"0.2\%")),
    Form(
        "approximations",
        approximations,
        (r"2\pi", r"2\pi \approx 6.28"),
        (r"2\pi", r"3\pi \approx 9.42"),
    ),
    Form("several unknowns", several_unknowns, ("x=1,y=2", "(1,2)"), ("x=1,y=2", "2,1")),
    Form("repeated", repeated, ("16,3,1,1", "1,16,1,3"), ("16,3,1,1", "16,3,1,3")),
    Form(
        "plus-minus",
        plus_minus,
        (r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}", r"\frac{1\pm\sqrt5}{2}"),
        (r"\pm 3", "3"),
    ),
)
