r"""Numbers and names in notations of their own: bases, times of the day, residues, labelled points.

Functions of a gold and an answer, as forms.py has them.
"""

import itertools
import re
from fractions import Fraction

from adaptsft.evals.graders.mathematics.latex import Equal, squeeze
from adaptsft.evals.graders.mathematics.rules import NUMBERS

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASES = NUMBERS | {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16}
_BASED = re.compile(
    r"""
    \(?\s* (?:\\text\{)? \s* (?P<digits>-?[0-9A-Z][0-9A-Za-z.,\ ]*?) \s* \}? \s* \)? \s*
    (?: _ \s* \{? \s* \(? (?:\\text\{)? \s* (?:base[ -]?)? (?P<index>\d+|[a-z]+) \s* \}? \)? \s* \}?
      | \s (?:\\text\{)? \s* (?:in\ |\()? base[ -]? (?P<word>\d+|[a-z]+) \s* \)? \}? )
    """,
    re.VERBOSE,
)


def _based_number(text: str) -> tuple[str, int] | None:
    r"""`1101_2`, `AB_{16}`, `4210_{\text{five}}`, `(11)_3`, `11 base 3`: digits and base."""
    found = _BASED.fullmatch(text.strip())
    if not found:
        return None
    digits = re.sub(r"[ ,]", "", found["digits"]).lower()
    name = found["index"] or found["word"]
    base = int(name) if name.isdecimal() else _BASES.get(name, 99)
    # a letter that is no digit of its base has an index; 204_2 is a number, if an impossible one
    if base > 36 or not set(digits) <= set(_DIGITS[: max(base, 10)]) | {".", "-"}:
        return None
    return digits.lstrip("0") or "0", base


def bases(gold: str, answer: str, equal: Equal) -> bool | None:
    """Digits and base must both be the same: `13_{10}` answers no question about base 2.

    A base that the answer leaves out is the one that was asked for; a gold without one is decimal.
    """
    one, other = _based_number(gold), _based_number(answer)
    if one and other:
        return one == other
    if one:
        digits = squeeze(answer).lower().lstrip("0")
        return digits == one[0] if re.fullmatch(r"[0-9a-z.]+", digits) else None
    if other and re.fullmatch(r"-?\d+", squeeze(gold)):  # no other base was asked for
        return other == (squeeze(gold).lstrip("0") or "0", 10)
    return None


_CLOCK = re.compile(
    r"""
    (?:\\text\{)? \s* (?P<hour>\d{1,2})
    (?:\s*(?::|\\colon|\.)\s*(?P<minute>\d\d))? (?::00)? \s* \}? \s*
    (?:\\text\{)? \s* (?:o'clock)? \s* (?:in\ the\ )?
    (?P<half>[ap]\.?\s*m\b\.?|noon|midnight|morning|afternoon|evening)? \s* \}?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HALVES = {"noon": "p", "midnight": "a", "morning": "a", "afternoon": "p", "evening": "p"}


def _clock(text: str) -> tuple[int, int, str] | None:
    found = _CLOCK.fullmatch(text.strip().rstrip("."))
    if not found or int(found["hour"]) > 24 or int(found["minute"] or 0) > 59:
        return None
    half = (found["half"] or "").lower()
    return int(found["hour"]), int(found["minute"] or 0), _HALVES.get(half, half[:1])


def _minutes(hour: int, minute: int, half: str) -> int:
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return 60 * hour + minute


def times(gold: str, answer: str, equal: Equal) -> bool | None:
    """Times of the day, where one of the two says a.m. or p.m.

    The other must say the same, or nothing; `17:30` is 5:30 p.m.
    """
    one, other = _clock(gold), _clock(answer)
    if not one or not other or not (one[2] or other[2]):
        return None
    if one[:2] == other[:2] and not (one[2] and other[2]):
        return True
    of_24_hours = max(one[0], other[0]) > 12
    if (one[2] and other[2]) or of_24_hours:
        return _minutes(*one) == _minutes(*other)
    return False


def ratios(gold: str, answer: str, equal: Equal) -> bool | None:
    """`4:6:10` is 2:3:5, in this order."""
    parts = [re.split(r":|\\colon", squeeze(text)) for text in (gold, answer)]
    if min(map(len, parts)) < 2:
        return None
    if len(parts[0]) != len(parts[1]):
        return False
    try:
        one, other = ([Fraction(part) for part in of] for of in parts)
    except (ValueError, ZeroDivisionError):
        return None
    if any(re.match(r"0\d|0$", part) for of in parts for part in of):  # 12:00 and 1:05 are times
        return one == other
    # a : b as c : d where ad = bc
    pairs = zip(itertools.pairwise(one), itertools.pairwise(other), strict=True)
    return all(a * d == b * c for (a, b), (c, d) in pairs)


_RESIDUE = re.compile(
    r"""
    (?:([a-z])\s*)? (?:\\equiv)? \s* (-?\d+) \s*
    (?: \\pmod | \\bmod | \\mod | \(?\s*(?:\\text\{)?\s*\(?mod\s*\}? )
    \s* \{? \s* (\d+) \s* \}? \)? \}?
    """,
    re.VERBOSE,
)


def residues(gold: str, answer: str, equal: Equal) -> bool | None:
    r"""`x \equiv 3 \pmod 5`: the same modulus, and remainders that differ by a multiple of it."""
    one, other = _RESIDUE.fullmatch(gold.strip()), _RESIDUE.fullmatch(answer.strip())
    if not one or not other:
        return None
    (x, a, m), (y, b, n) = ((found[1], int(found[2]), int(found[3])) for found in (one, other))
    return (x == y or None in (x, y)) and m == n and m > 0 and (a - b) % m == 0


_LABELS = re.compile(
    r"""
    (?:m\s*)?
    (?P<kind>\\(?:angle|measuredangle|triangle|Delta|overline|vec|overrightarrow|overleftrightarrow|
       overarc|widehat)\s*)?
    \{?\s* (?P<points>[A-Z]'?(?:\s*[A-Z]'?)+) \s*\}?
    """,
    re.VERBOSE,
)


def labels(gold: str, answer: str, equal: Equal) -> bool | None:
    """Angles, segments and triangles by the letters of their points.

    ABC is CBA as an angle, AB is BA as a segment; a product of letters in any order, as
    math-verify reads them, is not the same angle.
    """
    one, other = _LABELS.fullmatch(gold.strip()), _LABELS.fullmatch(answer.strip())
    if not one or not other:
        return None
    kinds = {(found["kind"] or "").strip(" \\") for found in (one, other)} - {""}
    kinds = {{"measuredangle": "angle", "Delta": "triangle"}.get(kind, kind) for kind in kinds}
    a, b = (re.findall(r"[A-Z]'?", found["points"]) for found in (one, other))
    if not kinds and max(len(a), len(b)) < 3:  # AB may be a product
        return None
    if len(kinds) > 1:
        return False
    kind = kinds.pop() if kinds else ""
    if kind == "triangle":
        return sorted(a) == sorted(b)
    if kind in ("", "vec", "overrightarrow"):
        return a == b
    return b in (a, a[::-1])


_POINT = re.compile(r"([A-Z])'?\s*=?\s*(\(.*,.*\))")
_COMBINATIONS = re.compile(r"C\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def points(gold: str, answer: str, equal: Equal) -> bool | None:
    """`P(3,4)` is the point (3,4); C(7,3), where no point is asked for, 7 choose 3."""
    one, other = (_POINT.fullmatch(text.strip()) for text in (gold, answer))
    if other and not one and gold.lstrip().startswith("("):
        return equal(gold, other[2])
    if one and not other and answer.lstrip().startswith("("):
        return equal(one[2], answer)
    chosen = [_COMBINATIONS.sub(r"\\binom{\1}{\2}", text) for text in (gold, answer)]
    return equal(*chosen) if chosen != [gold, answer] else None
