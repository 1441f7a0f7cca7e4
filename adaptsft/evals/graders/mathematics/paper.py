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

from adaptsft.evals.graders.mathematics.paper_latex import parse
from adaptsft.evals.graders.mathematics.paper_text import last_box, normal_form

LETTERS = ("A", "B", "C", "D", "E")


def extract_answer(response: str, keep_units: bool = False) -> str:
    """The normalised answer of a response.

    Its last box, or what follows "the answer is", or its last number; "" where there is none.
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
    """The option letter of a whole response.

    The first one after the last "answer is" or "choice is", else the last of all.
    """
    # the model continued with questions of its own
    if response.count("choice is") > 1 or response.count("answer is") > 1:
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
    # Text that no parser understood. sympy must not see it: its functions, N first, evaluate text.
    if isinstance(x, str) or isinstance(y, str):
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
        # the test is not for these kinds of values, or sympy gave up: the next one
        with contextlib.suppress(Exception):
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
    """The right side of `x=...`, or None.

    That is a single equation with at most two characters on the left.
    """
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0].strip()) <= 2 else None


@lru_cache(maxsize=16384)
def math_equal(answer: str, gold: str) -> bool:
    """Whether two normalised answers are equal: as text, numbers, by element, or in sympy."""
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
    """`response` is a whole answer, `prediction` only its result.

    `dataset: minerva_math` keeps the units of both, as published.
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
