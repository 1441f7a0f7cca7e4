r"""Forms of answers that are compared in a way of their own, before math-verify reads them.

Each form is a function of a gold and an answer (LaTeX, rewritten by math_rules): True or False where
it decides, None where the pair is not of its form. FORMS are asked in their order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Equal = Callable[[str, str], bool]  # of a gold and an answer: rewritten, compared, parsed


@dataclass(frozen=True)
class Form:
    name: str
    decide: Callable[[str, str, Equal], bool | None]
    right: tuple[str, str]  # a gold, and an answer that equals it
    wrong: tuple[str, str]  # a gold, and an answer that does not


def squeeze(text: str) -> str:
    """Text without spaces, dollars and a full stop: what never matters."""
    return re.sub(r"[\s$]+", "", text).rstrip(".")


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


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASES = {
    name: base
    for base, name in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen".split(),
        2,
    )
} | {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16}
_BASED = re.compile(
    r"\(?\s*\\?(?:text\{)?\s*(-?[0-9A-Z][0-9A-Za-z. ,]*?)\s*\}?\s*\)?\s*(?:_\s*\{?\s*\(?(?:\\text\{)?\s*"
    r"(?:base[ -]?)?(\d+|[a-z]+)\s*\}?\)?\s*\}?|\s(?:\\text\{)?\s*(?:in |\()?base[ -]?(\d+|[a-z]+)\s*\)?\}?)"
)


def _based_number(text: str) -> tuple[str, int] | None:
    """`1101_2`, `AB_{16}`, `4210_{\\text{five}}`, `(11)_3`, `11 base 3`: digits and base."""
    found = _BASED.fullmatch(text.strip())
    if not found:
        return None
    digits, name = re.sub(r"[ ,]", "", found[1]).lower(), found[2] or found[3]
    base = int(name) if name.isdecimal() else _BASES.get(name, 99)
    # a letter that is no digit of its base has an index; 204_2 is a number, if an impossible one
    if base > 36 or not set(digits) <= set(_DIGITS[: max(base, 10)]) | {".", "-"}:
        return None
    return digits.lstrip("0") or "0", base


def _bases(gold: str, answer: str, equal: Equal) -> bool | None:
    """Digits and base must both be the same: `13_{10}` answers no question about base 2.

    A base that one of the two leaves out is the one that was asked for.
    """
    one, other = _based_number(gold), _based_number(answer)
    if one and other:
        return one == other
    if one or other:
        based, plain = (one, answer) if one else (other, gold)
        assert based
        digits = squeeze(plain).lower().lstrip("0")
        return digits == based[0] if re.fullmatch(r"[0-9a-z.]+", digits) else None
    return None


_CLOCK = re.compile(
    r"(?:\\text\{)?\s*(\d{1,2})(?:\s*(?::|\{:\}|\\colon|\.)\s*(\d\d))?(?::00)?\s*\}?\s*"
    r"(?:\\text\{)?\s*(?:o'clock)?\s*(?:in the )?([ap]\.?\s*m\b\.?|noon|midnight|morning|afternoon|evening)?\s*\}?",
    re.IGNORECASE,
)


def _clock(text: str) -> tuple[int, int, str] | None:
    found = _CLOCK.fullmatch(text.strip().rstrip("."))
    if not found or int(found[1]) > 24 or int(found[2] or 0) > 59:
        return None
    half = (found[3] or "").lower()
    half = {"noon": "p", "midnight": "a", "morning": "a", "afternoon": "p", "evening": "p"}.get(
        half, half[:1]
    )
    return int(found[1]), int(found[2] or 0), half


def _times(gold: str, answer: str, equal: Equal) -> bool | None:
    """Times of the day, where one of the two says a.m. or p.m.

    The other must say the same, or nothing; `17:30` is 5:30 p.m.
    """
    one, other = _clock(gold), _clock(answer)
    if not one or not other or not (one[2] or other[2]):
        return None

    def minutes(hour: int, minute: int, half: str) -> int:
        hour = hour % 12 + (12 if half == "p" else 0) if half else hour
        return 60 * hour + minute

    if one[2] and other[2]:
        return minutes(*one) == minutes(*other)
    return one[:2] == other[:2] or (max(one[0], other[0]) > 12 and minutes(*one) == minutes(*other))


_NAME = re.compile(
    r"\\frac\s*\{\s*(?:\\text\{d\}|d|\\partial)\s*\^?\{?\d?\}?\s*[a-z]?\s*\}\s*\{\s*(?:\\text\{d\}|d|\\partial)\s*[a-z]"
    r"(?:\s*\^\{?\d\}?)?\s*\}\s*(?:\([a-z]\)|[a-z](?![a-z]))?|"
    r"d[a-z]/d[a-z]|(?:\\dot|\\ddot)\s*\{?[a-z]\}?|"
    r"[a-zA-Z](?:_\{?\w+\}?)?(?:'+|\^\{?(?:\\prime\s*)+\}?|\^\{?\(\d\)\}?|\^\{-1\})?\s*(?:\([a-z\d](?:,\s*[a-z])*\))?|"
    r"(?:m\s*)?\\angle\s*\{?[A-Z]{1,3}\}?|(?:\\overline|\\vec|\\hat|\\mathbf)\s*\{?\w+\}?|\\[a-z]+|[A-Z]{2,3}|\\text\{[^{}]*\}"
)
_DERIVATIVE = re.compile(r"\\frac\{d|\\frac\{\\(?:partial|text\{d)|'|\\prime|d[a-z]/d|\\dd?ot|\^\{?\(\d\)")


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


_LABELS = re.compile(
    r"(m\s*)?(\\(?:angle|triangle|overline|vec|overrightarrow|overleftrightarrow|Delta|overarc|widehat|measuredangle)\s*)?"
    r"\{?\s*([A-Z]'?(?:\s*[A-Z]'?)+)\s*\}?"
)


def _labels(gold: str, answer: str, equal: Equal) -> bool | None:
    """Angles, segments and triangles by the letters of their points.

    ABC is CBA as an angle, AB is BA as a segment; a product of letters in any order, as
    math-verify reads them, is not the same angle.
    """
    one, other = _LABELS.fullmatch(gold.strip()), _LABELS.fullmatch(answer.strip())
    if not one or not other:
        return None
    kinds = {(found[2] or "").strip().replace("measured", "") for found in (one, other)} - {""}
    points = [re.findall(r"[A-Z]'?", found[3]) for found in (one, other)]
    if not kinds and max(map(len, points)) < 3:
        return None
    if len(kinds) > 1:
        return False
    kind = kinds.pop() if kinds else ""
    if kind in ("\\vec", "\\overrightarrow"):
        return points[0] == points[1]
    if kind in ("\\triangle", "\\Delta"):
        return sorted(points[0]) == sorted(points[1])
    if not kind:
        return points[0] == points[1]
    return points[1] in (points[0], points[0][::-1])


_RESIDUE = re.compile(
    r"(?:[a-z]\s*)?(?:\\equiv)?\s*(-?\d+)\s*(?:\\pmod|\\bmod|\\mod|\(?\s*(?:\\text\{)?\s*\(?mod\s*\}?)\s*\{?\s*(\d+)\s*\}?\)?\}?"
)


def _residues(gold: str, answer: str, equal: Equal) -> bool | None:
    """`x \\equiv 3 \\pmod 5`: the same modulus, and remainders that differ by a multiple of it."""
    one, other = _RESIDUE.fullmatch(gold.strip()), _RESIDUE.fullmatch(answer.strip())
    if not one or not other:
        return None
    (a, m), (b, n) = (map(int, found.groups()) for found in (one, other))
    return m == n and m > 0 and (a - b) % m == 0


_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|\\text\{\s*(?:percent|per cent|pct)\s*\}|percent|per cent|pct)\s*")


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


def items(text: str) -> list[str]:
    r"""The elements of `1, 2 \text{ and } 3`."""
    return top_level(re.sub(r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}", ",", text), ",;")


def top_level(text: str, separators: str) -> list[str]:
    """`text`, split at separators that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif depth == 0 and character in separators:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


FORMS = (
    Form("words", _words, (r"\text{No solution}", "no solution"), (r"\text{odd}", r"\text{even}")),
    Form("choices", _choices, ("40", r"\textbf{(C) }40"), ("40", r"\textbf{(C) }41")),
    Form("bases", _bases, ("4210_5", r"4210_{\text{five}}"), ("1101_2", "1101_8")),
    Form("times", _times, (r"5{:}30\text{ PM}", "5:30 p.m."), (r"12{:}30\text{ a.m.}", "12:30 p.m.")),
    Form("residues", _residues, (r"x\equiv 3\pmod 5", r"8 \pmod{5}"), (r"3\pmod{7}", r"3\pmod{5}")),
    Form("labels", _labels, (r"\angle ABC", "∠CBA"), (r"\angle ABC", r"\angle ACB")),
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
