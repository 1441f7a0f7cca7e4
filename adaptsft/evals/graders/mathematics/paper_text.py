"""The form in which the published math grader compares texts (strip_string of its parser.py)."""

import contextlib
import re
from functools import lru_cache

from word2number import w2n

# Words and letters deleted where they stand alone, in this order (parser.py, from MathQA). A "."
# stands for any character there.
_UNITS_OF_MATHQA = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|"
    "rd|o|gm|p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|"
    "no change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th|"
    "π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu cm|square|"
    "v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|minute|min|second|man|"
    "woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|"
    "m|cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|"
    "metre|meter|inch"
)
_SINGULAR = _UNITS_OF_MATHQA.split("|")
# With what must be in the text for the pattern to match, which spares most of the searches.
_UNITS = [
    (unit.split(".")[0], re.compile(rf"(^|\W){unit}($|\W)"))
    for unit in [*_SINGULAR, *(unit + "s" for unit in _SINGULAR)]
]


def _fix_fracs(text: str) -> str:
    r"""\frac12 and \frac1{72} to \frac{1}{2} and \frac{1}{72}.

    The text stays as it was where one of them is cut off.
    """
    first, *rest = text.split("\\frac")
    fixed = first
    for part in rest:
        fixed += "\\frac"
        if part.startswith("{"):
            fixed += part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            fixed += f"{{{part[0]}}}{part[1:]}"
        else:
            fixed += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return fixed


def _fix_slash(text: str) -> str:
    r"""a/b to \frac{a}{b}, where each is a plain integer or holds a root."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        plain = all("sqrt" in part or str(int(part)) == part for part in parts)
    except ValueError:
        return text
    return f"\\frac{{{parts[0]}}}{{{parts[1]}}}" if plain else text


def _drop_units(text: str) -> str:
    for _ in range(2):
        for literal, pattern in _UNITS:
            if literal in text:
                text = pattern.sub(r"\1\2", text) or text
    return text


def _strip(text: str, keep_units: bool) -> str:
    """strip_string of parser.py.

    The order of the steps matters: each sees what the earlier ones left.
    """
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text).replace(
        "\\end{array}", "\\end{pmatrix}"
    )
    for old, new in (
        ("bmatrix", "pmatrix"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\neq", "\\ne"),
        ("\\leq", "\\le"),
        ("\\geq", "\\ge"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\{", "{"),
        ("\\}", "}"),
    ):
        text = text.replace(old, new)
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    if not keep_units:
        text = _drop_units(text)
    for old in ("^{\\circ}", "^\\circ", "\\$", "$", "\\(", "\\)"):
        text = text.replace(old, "")
    # it raises ValueError or IndexError where there is no number word
    with contextlib.suppress(Exception):
        text = str(w2n.word_to_num(text))
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for old in ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to"):
        text = text.replace(old, "")
    text = (
        text.replace("\\emptyset", "{}")
        .replace("(-\\infty,\\infty)", "\\mathbb{R}")
        .replace("\\%", "")
        .replace("%", "")
    )
    text = text.replace(" .", " 0.").replace("{.", "{0.").replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("+\\inity", "\\infty").replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox{.*?}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _fix_slash(_fix_fracs(text))


@lru_cache(maxsize=16384)
def normal_form(text: str, keep_units: bool = False) -> str:
    r"""The form in which answers and golds are compared.

    Stripped twice: the second time removes what the first has exposed (`x\in`).
    """
    return _strip(_strip(text, keep_units), keep_units)


def last_box(text: str) -> str:
    """What follows the last "boxed", up to its closing brace or the end of the text.

    Up to a dollar sign where it has no brace.
    """
    rest = text.split("boxed")[-1]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:end]
    return rest[1:]
