r"""Units at the end of an answer: `48\text{ cm}^2`, `18 dollars`, `9.8\,\mathrm{m\,s^{-2}}`.

Benchmarks ignore them, and so do the graders by default; `units: strict` asks for the gold's.
"""

import re

# Words of which one makes a text no unit: the number before them is not all of the answer.
_NO_UNIT = re.compile(
    r"""
    \b(?: and | or | if | when | where | for | mod | base | to | not | no | but | in\s+\w | is | are
      | more | less | fewer | choose | each | plus | minus | times | over | under | above | below
      | divided | factorial | percent | per\s+(?:cent|hundred|thousand) | of
      | (?: half | third | quarter | fourth | fifth | sixth | eighth | ninth | tenth | dozen | pair
          | ten | hundred | thousand | million | billion | lakh | crore | score )s? | halves
      | [ap]\.?\s?m ) \b
    | ^\W*(?:squared|cubed)\b | \([A-J]\)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_KNOWN = (
    "nm|mm|cm|dm|km|mi|ft|yd|sq|cu|mg|kg|lb|lbs|oz|ml|mL|cl|min|sec|ms|hr|hrs|kmh|kph|mph|km/h|"
    "m/s|Hz|kHz|MHz|eV|keV|MeV|kJ|kW|mol|Pa|kPa|atm|cal|deg|rad|degs|ohm|ohms|cc|pts"
)
_POWER = r"(?:\s*\^\s*\{?-?\d+\}?)?"
_TEXT = r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}"
_LATEX_UNIT = re.compile(
    rf"""
    (?:\s|\\cdot|/)*
    (?: {_TEXT} | \\Omega | \\mu(?=\\text) | \^\s*\{{?\s*\\circ\s*\}}?\s*(?:[CF](?![a-z]))? )
    {_POWER} \s* $
    """,
    re.VERBOSE,
)
_VALUE = r"""
    (-?(?: \d++(?:[.,]\d++)*+ | \.\d++ | \\frac\{[^{}]*\}\{[^{}]*\} | \\sqrt(?:\[\d\])?\{[^{}]*\}
      | \\pi | /\d+ | \^\{?\d+\}? | \s | \) | \\times | \\cdot )+)
"""
_WORDS = re.compile(
    rf"""
    {_VALUE}
    ((?: \s+[A-Za-z]{{4,}}\.? | \s*(?:{_KNOWN})(?![a-z]) | \s+per\s+[a-z]+ )+)
    {_POWER}
    """,
    re.VERBOSE,
)
_LETTER = re.compile(rf"(-?[\d.,]*\d)(\s*[msg]|\s+[LlJWVKF]){_POWER}")
_FUNCTIONS = re.compile(r"\b(?:sqrt|frac|infty|theta|alpha|beta|sinh|cosh|tanh|arcsin|arctan)\b")


def split(text: str, letters: bool) -> tuple[str, str]:
    """The value and its unit, "" where there is none.

    `letters`: a single letter behind a number is a unit too (`5 m`): not in a gold, where it may
    be a variable.
    """
    value, unit = text.strip(), ""
    while found := _LATEX_UNIT.search(value):
        words = found[1]
        # `\text{cm}` alone is no value; `x \text{ or more}` is not x
        if not value[: found.start()].strip() or (words and _NO_UNIT.search(words)):
            break
        if words is not None and not re.search(r"[^\W\d_]", words):
            break
        value, unit = value[: found.start()].strip(), value[found.start() :] + unit
    if not unit:
        found = _WORDS.fullmatch(value) or (letters and _LETTER.fullmatch(value))
        if (
            found
            and re.search(r"\d|\\pi", found[1])
            and not _NO_UNIT.search(found[2])
            and not _FUNCTIONS.search(found[2])
        ):
            value, unit = found[1].strip(), value[found.end(1) :]
    return value, unit


_SAME = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km",
    "kilometre": "km", "millimeter": "mm", "second": "s", "sec": "s", "hour": "h", "hr": "h",
    "minute": "min", "gram": "g", "kilogram": "kg", "degree": "deg", "inche": "inch", "in": "inch",
    "feet": "ft", "foot": "ft", "liter": "l", "litre": "l", "dollar": "$",
}  # fmt: skip


def normal(unit: str) -> str:
    """A unit in the form in which `strict` compares it: `square inches` and `inches^2` are one."""
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degree ", unit)
    text = re.sub(r"\\text|\\cdot|[{}\\.]", " ", text).lower()
    text = re.sub(r"\bper\b", "/", text)
    text = re.sub(r"\b(?:square|sq)\s+(\w+)", r"\1^2", text)
    text = re.sub(r"\b(?:cubic|cu)\s+(\w+)", r"\1^3", text)
    found = []
    for word, power in re.findall(r"([a-z$]+|/)\s*(\^-?\d+)?", text):
        stem = word if len(word) < 3 or word.endswith("ss") else word.removesuffix("s")
        found.append(_SAME.get(stem, stem) + power)
    return "".join(found)
