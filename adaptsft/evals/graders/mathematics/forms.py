r"""Forms of answers that are compared in a way of their own, before math-verify reads them.

Each form is a function of a gold and an answer (LaTeX, rewritten by rules): True or False where
it decides, None where the pair is not of its form. FORMS are asked in their order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from adaptsft.evals.graders.mathematics.latex import Equal, items, squeeze, top_level
from adaptsft.evals.graders.mathematics.notations import bases, labels, residues, times


@dataclass(frozen=True)
class Form:
    name: str
    decide: Callable[[str, str, Equal], bool | None]
    right: tuple[str, str]  # a gold, and an answer that equals it
    wrong: tuple[str, str]  # a gold, and an answer that does not


_WORDS = re.compile(r"\\text\{([^{}]*)\}")
_ARTICLES = re.compile(r"^(?:an?|the) ")


def words(text: str) -> str | None:
    """Lower-case words, where a text is nothing else: `\\text{No solution.}` is `no solution`."""
    plain = _WORDS.sub(r" \1 ", text)
    if re.search(r"[\\^_=<>{}$|]|\d", plain) or not re.search(r"[^\W\d_]{2,}", plain):
        return None
    plain = " ".join(re.sub(r"[^\w\s'-]", " ", plain).split()).lower()
    return _ARTICLES.sub("", plain)


def _words(gold: str, answer: str, equal: Equal) -> bool | None:
    """Words are compared as words; a formula of letters (`ab`, `ABC`) is not one."""
    if "\\text" not in gold + answer and not re.search(r"[^\W\d_]{3,}", gold):
        return None
    one, other = words(gold), words(answer)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return one == other or None
    return None


_NAME = re.compile(
    r"\\frac\s*\{\s*(?:\\text\{d\}|d|\\partial)\s*\^?\{?\d?\}?\s*[a-z]?\s*\}\s*\{\s*(?:\\text\{d\}|d|\\partial)\s*[a-z]"
    r"(?:\s*\^\{?\d\}?)?\s*\}\s*(?:\([a-z]\)|[a-z](?![a-z]))?|"
    r"d[a-z]/d[a-z]|(?:\\dot|\\ddot)\s*\{?[a-z]\}?|"
    r"[a-zA-Z](?:_\{?\w+\}?)?(?:'+|\^\{?(?:\\prime\s*)+\}?|\^\{?\(\d\)\}?|\^\{-1\})?\s*(?:\([a-z\d](?:,\s*[a-z])*\))?|"
    r"(?:m\s*)?\\angle\s*\{?[A-Z]{1,3}\}?|(?:\\overline|\\vec|\\hat|\\mathbf)\s*\{?\w+\}?|\\[a-z]+|[A-Z]{2,3}|\\text\{[^{}]*\}"
)
_DERIVATIVE = re.compile(
    r"\\frac\{d|\\frac\{\\(?:partial|text\{d)|'|\\prime|d[a-z]/d|\\dd?ot|\^\{?\(\d\)"
)


def named(text: str) -> tuple[str, str] | None:
    """`\\frac{dy}{dx} = 2x`, `f(x) = 2x`: the name that is squeezed, and what it equals."""
    name, equals, value = text.partition("=")
    if not equals or "=" in value or name.rstrip().endswith(("\\", "<", ">", "!", ":")):
        return None
    if "," in value and "(" not in value:  # several equations
        return None
    if not _NAME.fullmatch(name.strip()) or not value.strip():
        return None
    return squeeze(name).replace("^{\\prime}", "'").replace("^\\prime", "'"), value.strip()


def _derivatives(gold: str, answer: str, equal: Equal) -> bool | None:
    """Two equations for one derivative or function agree where their right sides do.

    math-verify reads `dy/dx = 2x` as a differential equation, and finds all of them alike.
    """
    one, other = named(gold), named(answer)
    if one and other:
        if one[0] == other[0]:
            return equal(one[1], other[1])
        if _DERIVATIVE.search(one[0]) and _DERIVATIVE.search(other[0]):
            # y' is dy/dx; f' and y' are read as different unknowns
            return _order(one[0]) == _order(other[0]) and equal(one[1], other[1])
        return None
    if one and _DERIVATIVE.search(one[0]) and "=" not in answer:
        return equal(one[1], answer)
    if other and _DERIVATIVE.search(other[0]) and "=" not in gold:
        return equal(gold, other[1])
    return None


def _order(name: str) -> tuple[str, int]:
    """The function of a derivative, and how many times it is derived."""
    if fraction := re.match(r"\\frac\{(?:d|\\partial|\\text\{d\})\^?\{?(\d?)\}?([a-z])", name):
        return fraction[2], int(fraction[1] or 1)
    letter = re.match(r"(?:d)?([a-zA-Z])", name)
    return (letter[1] if letter else name), name.count("'") or 1


_PERCENT = re.compile(
    r"(.*?)\s*(?:\\?%|\\text\{\s*(?:percent|per cent|pct)\s*\}|percent|per cent|pct)\s*"
)


def _percentages(gold: str, answer: str, equal: Equal) -> bool | None:
    """Where a percentage is asked for, `12.5`, `0.125` and `12.5\\%` say it; 0.2 is not 0.2 %."""
    one, other = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    if bool(one) == bool(other):
        return equal(one[1], other[1]) if one and other else None
    if one:
        return equal(one[1], answer) or equal(rf"\frac{{{one[1]}}}{{100}}", answer)
    assert other
    if equal(gold, rf"\frac{{{other[1]}}}{{100}}"):
        return True
    try:
        small = abs(Fraction(other[1].replace(",", ""))) < 1
    except (ValueError, ZeroDivisionError):
        small = False
    return not small and equal(gold, other[1])


_CHOICE = re.compile(
    r"(?:\\text\{)?\s*(?:\(([A-J])\)|([A-J])\)|([A-J])[.:]|([A-J])(?=\}))\s*(?:\})?\s*[.:]?\s*(?:\\ )?(.*)"
)


def _choices(gold: str, answer: str, equal: Equal) -> bool | None:
    """`\\text{(C) }40` answers with a choice and with what it says: either may be the gold."""

    def split(text: str) -> tuple[str, str] | None:
        found = _CHOICE.fullmatch(text.strip())
        if not found:
            return None
        return next(filter(None, found.groups()[:4])), found[5].strip().rstrip("}").strip() if (
            found[5].count("}") > found[5].count("{")
        ) else found[5].strip()

    one, other = split(gold), split(answer)
    letter = squeeze(gold).strip("().")
    if other and re.fullmatch(r"[A-J]", letter):
        return other[0] == letter
    if one and re.fullmatch(r"\(?[A-J]\)?[.]?", squeeze(answer)):
        return one[0] == squeeze(answer).strip("().")
    if one and other and one[1] and other[1]:
        return one[0] == other[0] and equal(one[1], other[1])
    if other and other[1] and not one:
        return equal(gold, other[1])
    if one and one[1] and not other:
        return equal(one[1], answer)
    return None


def expand_plus_minus(text: str) -> list[str]:
    r"""The values of an expression with \pm: both of one, and with \mp the signs go together."""
    signs = len(re.findall(r"\\pm(?![a-z])", text))
    if "\\mp" in text or signs == 1:
        return [
            re.sub(r"\\mp(?![a-z])", minus, re.sub(r"\\pm(?![a-z])", plus, text))
            for plus, minus in ("+-", "-+")
        ]
    if not 0 < signs <= 4:
        return [text]
    first = [re.sub(r"\\pm(?![a-z])", sign, text, count=1) for sign in "+-"]
    return [value for one in first for value in expand_plus_minus(one)]


def _plus_minus(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""`\frac{1 \pm \sqrt 5}{2}` is the list of its two values, wherever the sign stands."""
    if not re.search(r"\\(?:pm|mp)(?![a-z])", gold + answer):
        return None

    def values(text: str) -> list[str]:
        head, equals, rest = text.rpartition("=")
        name = f"{head}=" if equals and re.fullmatch(r"\s*\w\s*", head) else ""
        items = top_level(rest if name else text, ",")
        return [name + value for item in items for value in expand_plus_minus(item)]

    one, other = values(gold), values(answer)
    if len(one) < 2 or len(other) < 2:
        return len(one) == len(other) and equal(one[0], other[0])
    return equal(",".join(one), ",".join(other))


def _repeated(gold: str, answer: str, equal: Equal) -> bool | None:
    """Lists in which an element stands twice: as many of each, in any order. Sets forget that."""
    one, other = items(gold), items(answer)
    if len({*map(squeeze, one)}) == len(one) and len({*map(squeeze, other)}) == len(other):
        return None
    if len(one) != len(other):
        return False
    left = list(other)
    for item in one:
        found = next((i for i, value in enumerate(left) if equal(item, value)), None)
        if found is None:
            return False
        left.pop(found)
    return True


FORMS = (
    Form("words", _words, (r"\text{No solution}", "no solution"), (r"\text{odd}", r"\text{even}")),
    Form("choices", _choices, ("40", r"\textbf{(C) }40"), ("40", r"\textbf{(C) }41")),
    Form("bases", bases, ("4210_5", r"4210_{\text{five}}"), ("1101_2", "1101_8")),
    Form(
        "times", times, (r"5{:}30\text{ PM}", "5:30 p.m."), (r"12{:}30\text{ a.m.}", "12:30 p.m.")
    ),
    Form("residues", residues, (r"x\equiv 3\pmod 5", r"8 \pmod{5}"), (r"3\pmod{7}", r"3\pmod{5}")),
    Form("labels", labels, (r"\angle ABC", "∠CBA"), (r"\angle ABC", r"\angle ACB")),
    Form(
        "derivatives",
        _derivatives,
        (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx}=x+x"),
        (r"\frac{dy}{dx}=3x", r"\frac{dy}{dx}=2x"),
    ),
    Form("percentages", _percentages, (r"12.5\%", "12.5"), ("0.2", r"0.2\%")),
    Form("repeated", _repeated, ("16,3,1,1", "1,16,1,3"), ("16,3,1,1", "16,3,1,3")),
    Form(
        "plus-minus",
        _plus_minus,
        (r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}", r"\frac{1\pm\sqrt5}{2}"),
        (r"\pm 3", "3"),
    ),
)
