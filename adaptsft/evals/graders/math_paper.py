r"""The math grader of the published scores, quirks included, on safe parsers (latex.py).

Behaviour: QwenLM/Qwen2.5-Math@a45202bd evaluation/{parser,grader,math_eval}.py (MIT), which
GaotangLi/Beyond-Log-Likelihood@220589d evaluations/math uses; written anew from what it does. Its
quirks are kept: numbers may be off by a factor of 100 either way (5000 for 50); bare lists are
compared by their first element (`1,-2` equals `1,3`, but not `-2,1`); units are deleted, so that
`\text{east}` is the empty answer, which any empty extraction equals; `10{,}000` is 10.
`math-robust` is the grader without them.
"""

import contextlib
import math
import re
from functools import lru_cache

import sympy
from word2number import w2n

from adaptsft.evals.graders.latex import parse

# Words and letters deleted where they stand alone, in this order (parser.py, from MathQA). A "."
# stands for any character there.
_UNITS_OF_MATHQA = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of "
    "rs|rd|o|gm|p . m|lb|tile|per|dm|lt|gain|ab|"
    "way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no "
    "change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|acre|rise|"
    "a . m|th|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu "
    "cm|square|v â € ™|are|rupee|rounds|cubic|cc|"
    "mtr|s|ohm|number|kmph|day|hour|minute|min|second|man|woman|sec|cube|mt|sq inch|mp|∏ cm "
    "³|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|"
    "g|month|km|m|cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi "
    "sq m|s .|metre|meter|inch"
)
_SINGULAR = _UNITS_OF_MATHQA.split("|")
# With what must be in the text for the pattern to match, which spares most of the searches.
_UNITS = [
    (unit.split(".")[0], re.compile(rf"(^|\W){unit}($|\W)"))
    for unit in [*_SINGULAR, *(unit + "s" for unit in _SINGULAR)]
]

LETTERS = ("A", "B", "C", "D", "E")


def _fix_fracs(text: str) -> str:
    r"""\frac12 and \frac1{72} to \frac{1}{2} and \frac{1}{72}; all of the text as it was where one
    of them is cut off.
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
    with contextlib.suppress(
        Exception
    ):  # its way to say that there is no number word: ValueError, and IndexError
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
    r"""The form in which answers and golds are compared: stripped twice, for the second time sees
    what the first laid bare (`x\in`).
    """
    return _strip(_strip(text, keep_units), keep_units)


def last_box(text: str) -> str:
    r"""What follows the last "boxed": up to its closing brace (or the end of the text), or up to a
    dollar sign where it has no brace.
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


def extract_answer(response: str, keep_units: bool = False) -> str:
    """The normalised answer of a response: its last box, or what follows "the answer is", or its
    last number; "" where there is none.
    """
    text = response.replace("ки", "")
    if "final answer is $" in text and "$. I hope" in text:
        answer = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in text:
        answer = last_box(text)
    elif "he answer is" in text:
        answer = text.split("he answer is")[-1].strip()
    elif "final answer is" in text:
        answer = text.split("final answer is")[-1].strip()
    elif "答案是" in text:
        answer = text.split("答案是")[1].strip().split("\n\n")[0].strip()
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
        answer = numbers[-1] if numbers else ""
    return normal_form(
        re.sub(r"\n\s*", "", answer).removeprefix(":").removesuffix(".").removesuffix("/"),
        keep_units,
    )


def _last_letter(text: str) -> str:
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters = re.findall(r"\b(A|B|C|D|E)\b", text.upper())
    return (letters[-1] if letters else text.strip().strip(".")).rstrip(".").rstrip("/")


def _chosen_letter(response: str) -> str:
    """The option letter of a whole response: the first one after the last "answer is" or "choice
    is", else the last of all.
    """
    if (
        response.count("choice is") > 1 or response.count("answer is") > 1
    ):  # the model went on with questions of its own
        response = response.strip("\n").split("\n\n")[0]
    parts = re.split("choice is|answer is", response)
    letters = re.findall(r"\b(A|B|C|D|E)\b", parts[-1].upper())
    return letters[0] if letters and len(parts) > 1 else _last_letter(parts[-1])


def _number(text: str) -> float | None:
    text = text.replace(",", "")
    with contextlib.suppress(ValueError):
        return float(text)
    if text.endswith("%"):
        with contextlib.suppress(ValueError):
            return float(text[:-1].removesuffix("\\")) / 100
    return None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)


def symbolic_equal(a: str, b: str) -> bool:
    x, y = parse(a), parse(b)
    if isinstance(x, str) or isinstance(
        y, str
    ):  # what no parser understood. sympy must not see it: its functions, N first, evaluate text
        return str(x) == str(y)

    def same() -> bool:
        return str(x) == str(y) or x == y

    def zero_difference() -> bool:
        return x.equals(y) or sympy.simplify(x - y) == 0

    def same_equation() -> bool:
        return abs(x.lhs - x.rhs).equals(abs(y.lhs - y.rhs))

    def close() -> bool:
        return _close(float(sympy.N(x)), float(sympy.N(y)))

    def close_matrices() -> bool:
        return x.shape == y.shape and x.applyfunc(lambda e: round(e, 3)).equals(
            y.applyfunc(lambda e: round(e, 3))
        )

    for test in (same, zero_difference, same_equation, close, close_matrices):
        with contextlib.suppress(
            Exception
        ):  # not a test for these kinds of values, or sympy gave up: the next one
            if test():
                return True
    return False


def _rows(matrix: str) -> list[list[str]] | None:
    """Cells of \\begin{pmatrix}...\\end{pmatrix}, or None for anything else."""
    if not re.fullmatch(r"\\begin\{[pb]matrix\}.*\\end\{[pb]matrix\}", matrix, re.DOTALL):
        return None
    lines = matrix[len("\\begin{pmatrix}") : -len("\\end{pmatrix}")].split("\\\\")
    return [line.strip().split("&") for line in lines if line.strip()]


def _all_equal(answers: list[str], golds: list[str]) -> bool:
    return len(answers) == len(golds) and all(
        math_equal(a, g) for a, g in zip(answers, golds, strict=True)
    )


def _one_sided(text: str) -> str | None:
    """The right side of `x=...`, a single equation with at most two characters on the left; None
    for anything else.
    """
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0].strip()) <= 2 else None


@lru_cache(maxsize=16384)
def math_equal(answer: str, gold: str) -> bool:
    """Whether two normalised answers count as equal: as text, as numbers, element by element, or in
    sympy.
    """
    if answer.strip().lower() == gold.strip().lower():
        return True
    if gold in LETTERS and _last_letter(answer) == gold:
        return True
    a, g = _number(answer), _number(gold)
    if a is not None and g is not None:
        return _close(g / 100, a) or _close(g, a) or _close(g * 100, a)
    if not answer:
        return False
    gold, answer = gold.strip(), answer.strip()

    if "pmatrix" in answer and "pmatrix" not in gold:  # {1,2} to a column
        columns = [cells.strip("{}").replace(",", "\\") for cells in re.findall(r"\{.*,.*\}", gold)]
        gold = ", ".join(f"\\begin{{pmatrix}}{column}\\end{{pmatrix}}" for column in columns)

    # Brackets of one side only do not count, and braces and parentheses never.
    square = answer.startswith("[") and answer.endswith("]") and not gold.startswith("(")
    round_ = answer.startswith("(") and answer.endswith(")") and not gold.startswith("[")
    bare = [text.strip("[]()") if square or round_ else text for text in (answer, gold)]
    bare = [re.sub(r"[{}()]", "", text).lower() for text in bare]
    if bare[0] == bare[1]:
        return True

    bracketed = re.compile(r"[(\[].+[)\]]")
    if (
        bracketed.match(answer)
        and bracketed.match(gold)
        and _all_equal(answer[1:-1].split(","), gold[1:-1].split(","))
    ):
        return True
    rows, gold_rows = _rows(answer), _rows(gold)
    if (
        rows is not None
        and gold_rows is not None
        and len(rows) == len(gold_rows)
        and all(map(_all_equal, rows, gold_rows))
    ):
        return True

    if answer.count("=") == 1 and gold.count("=") == 1:
        left, right = (
            f"{lhs.strip()} - ({rhs.strip()})" for lhs, rhs in (answer.split("="), gold.split("="))
        )
        if symbolic_equal(left, right) or symbolic_equal(f"-({left})", right):
            return True
    elif "=" not in gold and (side := _one_sided(answer)) is not None:
        if math_equal(side, gold):
            return True
    elif "=" not in answer and (side := _one_sided(gold)) is not None and math_equal(answer, side):
        return True
    return symbolic_equal(answer, gold)


def grade(record: dict) -> dict:
    """`response` is a whole answer, `prediction` only its result; `dataset: minerva_math` keeps the
    units of both, as published.
    """
    keep_units = record.get("dataset") == "minerva_math"
    gold = normal_form(str(record["gold"]), keep_units)
    if "response" in record:
        text = record["response"]
        answer = extract_answer(text, keep_units)
        if gold in LETTERS and answer not in LETTERS:  # math_eval.py, after extraction
            answer = _chosen_letter(text)
    else:
        text = record["prediction"]
        answer = (
            extract_answer(text, keep_units) if "boxed" in text else normal_form(text, keep_units)
        )
    return {"correct": math_equal(answer, gold), "extracted": answer, "unparsed": not answer}
