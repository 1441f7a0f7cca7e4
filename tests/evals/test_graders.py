"""The rules of each grader, on answers written here."""

import re

import pytest
import sympy

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.graders import figfont, medical, mmlu_prox
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.mathematics import paper as math_paper, robust as math_robust
from adaptsft.evals.graders.mathematics.paper_latex import parse, parse_python
from adaptsft.evals.graders.registry import GRADERS

OPTIONS = {"A": "Iron", "B": "Vitamin D", "C": "Rest", "D": "Surgery"}


def paper(gold: str, prediction: str) -> bool:
    return math_paper.grade({"gold": gold, "prediction": prediction})["correct"]


def robust(gold: str, response: str) -> bool:
    return math_robust.grade({"gold": gold, "response": response})["correct"]


@pytest.mark.parametrize(
    ("gold", "prediction", "correct"),
    [
        ("50", "5000", True),  # a factor of 100 either way
        ("50", "0.5", True),
        ("50", "500", False),
        ("3", "3.0002", True),  # relative 1e-4
        ("\\text{north west}", "\\text{east}", False),
        ("\\text{east}", "\\text{west}", True),  # units are deleted
        ("12 \\text{ kg}", "12", True),
        ("1,-2", "1,3", True),  # the LaTeX parser stops at a comma
        ("1,-2", "-2,1", False),
        ("10{,}000", "10000", False),
        ("7e5", "7 \\times 10^5", False),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}", False),
        ("\\frac{1}{2}", "\\frac12", True),
        ("\\frac{1}{2}", "1/2", True),
        ("(1,2)", "(1.0, \\frac{4}{2})", True),
        (
            "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
            "\\begin{bmatrix} 1.0 \\\\ 4/2 \\end{bmatrix}",
            True,
        ),
        ("p+2q=3", "-p-2q=-3", True),
        ("k=4", "4", True),
        ("five", "5", True),
        ("C", "(C)", True),
    ],
)
def test_paper_grader_keeps_the_published_quirks(gold: str, prediction: str, correct: bool) -> None:
    assert paper(gold, prediction) is correct


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("First \\boxed{1}, no, \\boxed{\\frac{2}{3}}.", "\\frac{2}{3}"),
        ("The final answer is $8$. I hope it is correct.", "8"),
        ("So the answer is 12.", "12"),
        ("It has 3 legs, 1,200 arms", "1200"),
        ("No idea", ""),
    ],
)
def test_paper_grader_extracts_the_published_way(response: str, extracted: str) -> None:
    verdict = math_paper.grade({"gold": "0", "response": response})
    assert verdict["extracted"] == extracted
    assert verdict["unparsed"] is (extracted == "")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("50", "5000"),
        ("50", "0.5"),
        ("\\text{east}", "\\text{west}"),
        ("1,-2", "1,3"),
        ("(1,2)", "(2,1)"),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),  # Math-Verify#14, as the next four
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}"),
        ("1, 2, \\ldots, n", "1, 3, 5, \\ldots, 2n-1"),
        ("12:00", "1:00"),
        ("3x + 4y + 14=0", "3*x-1*y+13=0"),  # Math-Verify#60
        ("1.39e-10", "1.41e-10"),
        ("0.00000012", "0.0000001"),
    ],
)
def test_robust_grader_refuses_known_false_positives(gold: str, answer: str) -> None:
    assert not robust(gold, f"So it is $\\boxed{{{answer}}}$.")
    assert not robust(gold, f"The answer is ${answer}$.")
    assert not math_robust.grade({"gold": gold, "prediction": answer})["correct"]
    assert robust(gold, f"So it is $\\boxed{{{gold}}}$.")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("4.5e33", "4.5 \\times 10^{33}"),
        ("4.5 \\times 10^{33}", "4.5E+33"),
        ("7.02e5", "702000"),
        ("6.5e-3", "0.0065"),
        ("69$,$84", "84, 69"),  # OlympiadBench's delimiters
        ("221,$8", "8, 221"),
        ("10{,}000", "10000"),
        ("1234567", "1\\,234\\,567"),
        ("1234567", "1,234,567"),
        ("\\$6", "6"),
        ("25\\%", "0.25"),
        (".5", "\\frac{1}{2}"),
        ("\\frac{1}{3},-2,5", "-2, \\frac13, 5"),
        ("x \\in [-2,7]", "-2 \\le x \\le 7"),
        ("70\\sqrt2", "98.99494937"),
        ("p=5,q=2;p=7,q=2", "p = 5, q = 2 \\text{ and } p = 7, q = 2"),
        ("1, 2, \\ldots, n", "1,2,\\ldots,n"),
    ],
)
def test_robust_grader_accepts_other_notations(gold: str, answer: str) -> None:
    assert robust(gold, f"So it is $\\boxed{{{answer}}}$.")


def test_robust_grader_reads_prose_and_precision() -> None:
    assert robust("4.5e33", "The answer is 4.5e33")
    assert math_robust.grade({"gold": "$\\frac13$", "prediction": "$0.33$", "precision": 2})[
        "correct"
    ]
    assert not math_robust.grade({"gold": "$\\frac13$", "prediction": "$0.33$"})["correct"]
    with pytest.raises(DataError, match=r"words.*latex, expr"):
        math_robust.grade({"gold": "1", "prediction": "1", "match_types": ["words"]})


@pytest.mark.parametrize(
    ("response", "by_paper", "by_m1"),
    [
        ("\\boxed{B} although the answer is C", "C", "B"),
        ("The answer is C. So the answer is A", "A", "A"),
        ("\\boxed{\\text{vitamin d}}", "B", "B"),
        ("I would prescribe some rest.", "C", "C"),
        ("A patient needs surgery", "D", "D"),  # the article is no option
        ("", "D", "D"),  # no likeness: the last of the options
    ],
)
def test_medical_graders(response: str, by_paper: str, by_m1: str) -> None:
    record = {"response": response, "options": OPTIONS}
    verdict = medical.grade_paper(record | {"gold": by_paper})
    assert verdict == {"correct": True, "extracted": by_paper, "unparsed": response == ""}
    right = [letter for letter in OPTIONS if medical.grade_m1(record | {"gold": letter})["correct"]]
    assert right == [by_m1]


def test_medical_gold_must_be_an_option() -> None:
    [verdict] = grade_all("medical-m1", [{"response": "", "options": OPTIONS, "gold": "E"}])
    assert verdict["correct"] is None and re.match(r"gold is 'E'.*A, B, C, D", verdict["error"])


def test_jaro_winkler_of_the_paper_differs_where_documented() -> None:
    # m=3, one character out of order: t=1/2 is kept. Jaro = (1 + 1 + (3-1)/3) / 3 for two.
    assert figfont.jaro_winkler_paper("aac", "aca") == pytest.approx(0.6)
    assert figfont.jaro_winkler_paper("", "a") == 0.0
    verdict = figfont.grade({"output": "WORD ", "answer": "word"})
    assert verdict == {"exact_match": False, "jw_paper": 1.0, "jw_standard": 1.0}


def test_mmlu_prox_takes_the_first_sentence() -> None:
    assert mmlu_prox.grade({"lang": "sw", "response": "Jibu ni (C). Jibu ni (D).", "gold": "C"})[
        "correct"
    ]
    assert mmlu_prox.grade({"lang": "sw", "response": "C", "gold": "C"}) == {
        "correct": False,
        "extracted": "[invalid]",
        "unparsed": True,
    }
    [verdict] = grade_all("mmlu-prox", [{"lang": "xx", "response": "", "gold": "C"}])
    assert verdict["correct"] is None and re.match(r"lang is 'xx'.*zu", verdict["error"])


def test_parse_knows_arithmetic_only() -> None:
    assert parse("{1,2}") == parse("{2,1}")  # as Python's sets
    assert parse_python("(2*x, -1.5**2)") == (2 * sympy.Symbol("x"), sympy.Float("-2.25"))
    for text in (
        "f(1)",
        "(open, f(1))",
        "[x.y, 1]",
        "{x for x in y}",
        "'a'",
        "x[0]",
        "lambda: 1",
        "f'{x}'",
        "(x := 1)",
    ):
        with pytest.raises(ValueError, match="is not arithmetic"):
            parse_python(text)


def test_unknown_grader_and_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'maths' is unknown.*math-paper"):
        grade_all("maths", [])
    found = grade_all("math-paper", [{"gold": 1, "response": ""}, {"gold": 1}])
    assert found[0]["correct"] is False and found[1]["correct"] is None
    assert found[1]["error"].startswith("math-paper reads response or prediction")
    [verdict] = grade_all("mmlu-prox", [{"lang": "sw", "response": 3, "gold": "A"}])
    assert verdict["error"].startswith("response is 3")
    assert all(grader.isolated for name, grader in GRADERS.items() if name.startswith("math"))
