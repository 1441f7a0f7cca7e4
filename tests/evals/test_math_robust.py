r"""math-robust: every rule and form both ways, answers in what models write, and scans over the
golds of the benchmarks: in Unicode they are right, with a digit or a sign changed they are not.
"""

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.__main__ import main
from adaptsft.evals.graders.__main__ import describe_math_rules
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.mathematics.forms import FORMS, Form
from adaptsft.evals.graders.mathematics.paper_text import last_box
from adaptsft.evals.graders.mathematics.robust import grade
from adaptsft.evals.graders.mathematics.rules import RULES, Rule
from adaptsft.evals.graders.mathematics.unicode import to_latex
from adaptsft.evals.tasks import load_task
from tests.conftest import REPO

AROUND = ("So it is $\\boxed{%s}$.", "It is %s, so\n\n**Final Answer**: \\[\\boxed{ %s }\\]")


def right(gold: str, answer: str, **options: Any) -> bool:
    """The verdict on a boxed answer, the same in all surroundings."""
    responses = [around.replace("%s", answer) for around in AROUND]
    verdicts = {
        grade({"gold": gold, "response": response} | options)["correct"] for response in responses
    }
    verdicts.add(grade({"gold": gold, "prediction": answer} | options)["correct"])
    assert len(verdicts) == 1, (gold, answer)
    return verdicts.pop()


@pytest.mark.parametrize("rule", [*RULES, *FORMS], ids=lambda rule: rule.name)
def test_a_rule_is_right_both_ways(rule: Rule | Form) -> None:
    assert right(*rule.right)
    assert not right(*rule.wrong)


def test_the_page_lists_every_rule() -> None:
    assert describe_math_rules() in (REPO / "docs" / "graders.md").read_text(), "run: make docs"


RIGHT = [
    ("(-\\infty,1)\\cup(6,\\infty)", "x < 1 \\text{ or } x > 6"),
    ("x<-2 \\cup x>2", "(-\\infty,-2)\\cup(2,\\infty)"),
    ("(2,\\infty)", "\\{x \\in \\mathbb{R} \\mid x > 2\\}"),
    ("(1,6)", "x > 1 \\text{ and } x < 6"),
    ("x>3", "2x>6"),
    ("2i", "\\sqrt{-4}"),
    ("-1", "i^2"),
    ("1+i", "\\sqrt2 e^{i\\pi/4}"),
    ("2:3", "4:6"),
    ("\\frac{1}{7}", "0.142857142857\\ldots"),
    ("\\frac{7}{30}", "0.2\\dot{3}"),
    ("5000000", "5 million"),
    ("17:30", "5:30 \\text{ p.m.}"),
    ("f'(x)=2x", "\\frac{df}{dx} = 2x"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1 & 2 \\\\ 3 & 4\\end{bmatrix}"),
    ("16,3,1,1,2", "1,16,2,1,3"),
    ("m c^2(\\gamma^2-1)", "(\\gamma-1)(\\gamma+1) m c^2"),
    ("C", "\\text{C. } 40"),
    ("\\frac{59}{8}", "7\\frac{3}{8}"),
    ("AB_{16}", "\\mathrm{AB}_{16}"),
    ("\\overline{AB}", "\\overline{BA}"),
    ("6.28", "2\\pi \\approx 6.28"),
    ("\\text{June 20}", "June 20"),
    ("x=1,y=2", "(1,2)"),
    ("0.5\\%", "0.005"),
    ("9.8", "9.8\\text{ meters per second squared}"),
    (
        "\\frac{1}{49}\\begin{pmatrix}16\\\\48\\end{pmatrix}",
        "\\begin{pmatrix}16/49\\\\48/49\\end{pmatrix}",
    ),
]
WRONG = [
    ("0", "0.\\overline{3}"),  # read in part it is 0
    ("1", "x \\le -1 \\lor x\\ge 1"),
    ("2", "\\frac{1\\pm2}{3}"),
    ("\\begin{pmatrix}-1&0\\\\0&-1\\end{pmatrix}", "\\begin{pmatrix}-1&1\\\\0&-1\\end{pmatrix}"),
    ("m_p(\\gamma^2-1)", "m_p(\\gamma^2-5)"),  # both infinite, were \gamma the gamma function
    ("\\frac{dx}{dt}=kx-a", "\\frac{dx}{dt}+kx-a"),
    ("\\frac{\\partial f}{\\partial y}=2xy", "\\frac{\\partial f}{\\partial x}=2xy"),
    ("y'=2x", "y''=2x"),
    ("204_5", "204_2"),
    ("1101_2", "13_{10}"),
    ("x<1 \\text{ or } x>6", "y<1 \\text{ or } y>6"),
    ("(1,6)", "x > 1 \\text{ or } x < 6"),
    ("12:00", "1:00"),
    ("3", "3 \\text{ or more}"),
    ("\\overline{AB}", "\\overline{AC}"),
    ("\\vec{AB}", "\\vec{BA}"),
    ("40", "\\textbf{(C) } 4"),
    ("B", "\\textbf{(C) } 40"),
    ("5m", "5"),  # a variable
    ("2i", "2"),
    ("50\\%", "5"),
    ("2:3:5", "2:5:3"),
    ("0.36", "0.\\overline{36}"),
    ("7", "7 3/8"),
    ("5", "5 squared"),
    ("5", "5\\text{ factorial}"),
    ("2", "2 \\text{ thirds}"),
    ("3", "3\\text{ (not 4)}"),
    ("3", "2 \\approx 3"),
    ("6", "2\\pi \\approx 6"),
    ("A", "(A) or (B)"),
    ("(B)", "B. 7 and C"),
    ("12", "\\text{(A) }12\\text{ (B) }"),
    ("f'(x)=2x", "f(x)=2x"),
    ("f(3)=6", "f(2)=6"),
    ("\\angle ABC = 30", "\\angle ACB = 30"),
    ("2x", "y''=2x"),
    ("16", "16_7"),
    ("\\frac12", "\\frac{1}{2}\\%"),
    ("0.5\\%", "0.5"),
    ("100", "hundred and one"),
    ("4\\pi", "4\\pi h"),
    ("6", "6^\\circ\\text{F below zero}"),
    ("1:1:2", "1:2"),
    ("x\\equiv 1\\pmod 3", "y \\equiv 1\\pmod 3"),
    ("x=1,y=2", "2,1"),
    ("0.12", "0.12..."),
    ("\\sqrt{53}", "\\sqrt{53}+10^{-20}"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_other_notations_are_right(gold: str, answer: str) -> None:
    assert right(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_answers_that_look_alike_are_wrong(gold: str, answer: str) -> None:
    assert not right(gold, answer)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("First \\boxed{7}, so the final \\boxed{9}", "9"),
        ("$\\boxed{2}$ and $\\boxed{3}$", "2, 3"),
        ("x = \\boxed{2}, y = \\boxed{3}.", "2, 3"),
        ("<think>\\boxed{8}? No.</think> \\boxed{9}", "9"),
        ("\\boxed{6}\n\nHuman: And 2+3?\n\nAssistant: \\boxed{5}", "6"),
        ("Answer: 64 (not 65)", "64"),
        ("答案：42", "42"),
        ("#### 1,800", "1,800"),
        ("The winner is **Hannah**.", "Hannah"),
    ],
)
def test_the_answer_is_found(response: str, answer: str) -> None:
    verdict = grade({"gold": answer, "response": response})
    assert verdict["correct"] and not verdict["unparsed"]
    assert verdict["extracted"].removeprefix("#### ") == answer


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("5", "The answer is less than 5."),
        ("3", "The answer is at least 3"),
        ("10", "9\n\nQuestion: what is 10?"),
        ("10", "The answer is 9.\n\nInstruction: 5+5?\nThe answer is 10"),
        ("10", "It is 9.\n### Problem 2: 5+5?\nAnswer: 10"),
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(gold: str, response: str) -> None:
    assert not grade({"gold": gold, "response": response})["correct"]


@pytest.mark.parametrize(
    "answer",
    [
        *("A." * 2500, "1" + "\\%" * 800, "1" * 9900, "{" * 9900, "(" * 9900, "((1" * 3300),
        *("1 " * 4950, "\\frac{" * 1600, "x" * 9000, "²" * 3000, "9" * 4500 + "\\pmod{7}"),
        "\\text{" * 1500,
    ],
    ids=lambda answer: answer[:8],
)
def test_endless_texts_are_read_at_once(answer: str) -> None:
    """In this process: they would hang it, or raise."""
    for gold in ("12", "50\\%", "4:6", "3\\pmod{7}", "1101_2"):
        for record in ({"response": f"\\boxed{{{answer}}}"}, {"prediction": answer}):
            assert not grade({"gold": gold} | record)["correct"]


@pytest.mark.parametrize("response", ["<think>maybe \\boxed{8}", "so \\boxed{8", "", " \n "])
def test_an_answer_that_was_cut_off_is_none(response: str) -> None:
    assert grade({"gold": "8", "response": response}) == {
        "correct": False,
        "extracted": "",
        "unparsed": True,
    }


@pytest.mark.parametrize(
    ("gold", "answer", "ignored", "strict"),
    [
        ("5\\text{ cm}^2", "5", True, False),
        ("5\\text{ cm}^2", "5\\text{ cm}^3", True, False),
        ("5\\text{ cm}^2", "5\\,\\mathrm{cm}^2", True, True),
        ("12 \\text{ square inches}", "12\\text{ inches}^2", True, True),
        ("75^\\circ", "75 degrees", True, True),
        ("75^\\circ", "75", True, False),
        ("18", "18 dollars", True, True),
        ("9.8\\text{ m/s}", "9.8\\text{ meters per second}", True, True),
        ("9.8\\text{ m/s}", "9.9\\text{ m/s}", False, False),
    ],
)
def test_units_are_ignored_or_asked_for(
    gold: str, answer: str, ignored: bool, strict: bool
) -> None:
    assert right(gold, answer) is ignored
    assert right(gold, answer, units="strict") is strict


def test_units_have_two_settings() -> None:
    with pytest.raises(DataError, match=r"units is 'exact'.*ignore or strict"):
        grade({"gold": "1", "response": "1", "units": "exact"})


@pytest.fixture(scope="module")
def golds(shared_data: Path) -> list[str]:
    """The golds of MATH-500, OlympiadBench and Minerva, without their dollars."""
    found = set()
    for name in ("math500_math_oai", "olympiadbench", "minerva_math"):
        for line in (shared_data / "math" / f"{name}.jsonl").open():
            item = json.loads(line)
            if name == "minerva_math":
                item["answer"] = last_box(item["solution"])
            found.add(str(item.get("answer") or item["final_answer"][0]).strip("$."))
    return sorted(gold for gold in found if "$" not in gold)


IN_UNICODE = (
    (r"\^\{?\\circ\}?", "°"),
    (r"\\infty(?![a-z])", "∞"),
    (r"\\pi(?![a-z])", "π"),
    (r"\\times(?![a-z])", "×"),
    (r"\\cdot(?![a-z])", "·"),
    (r"\\leq?(?![a-z])", "≤"),
    (r"\\geq?(?![a-z])", "≥"),
    (r"\\cup(?![a-z])", "∪"),
    (r"\\pm(?![a-z])", "±"),
    (r"\\theta(?![a-z])", "θ"),
    (r"\\left|\\right", ""),
    (r"\\sqrt\{(\d+)\}", r"√\1"),
    (r"\\sqrt\{([^{}]*)\}", r"√(\1)"),
    (r"\\frac\{1\}\{2\}", "½"),
    (r"\\frac\{2\}\{3\}", "⅔"),
    ("-", "−"),
)
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def in_unicode(gold: str) -> str:
    for pattern, sign in IN_UNICODE:
        gold = re.sub(pattern, sign, gold)
    exponent = re.compile(r"\^(?:\{(\d+)\}|(\d))")
    return exponent.sub(lambda of: (of[1] or of[2]).translate(SUPERSCRIPTS), gold)


def test_the_golds_of_benchmarks_are_right_in_unicode(golds: list[str]) -> None:
    records = [
        {"gold": gold, "response": around.replace("%s", in_unicode(gold))}
        for gold in golds
        if in_unicode(gold) != gold
        for around in ("\\boxed{%s}", "The answer is %s.")
    ]
    assert len(records) > 600
    verdicts = grade_all("math-robust", records)
    assert not [r for r, v in zip(records, verdicts, strict=True) if not v["correct"]]


# equal all the same: an infinite end is open, and units are ignored
STILL_EQUAL = re.compile(r"\[-\\infty|\\infty\]|\\(?:text|mbox)")


def test_golds_with_a_digit_or_a_sign_changed_are_wrong(golds: list[str]) -> None:
    draw = random.Random(0)
    records = []
    for gold in golds[::24]:
        digits = [i for i, character in enumerate(gold) if character.isdecimal()]
        for i in draw.sample(digits, min(1, len(digits))):
            other = str((int(gold[i]) + draw.randint(1, 8)) % 10)
            records.append((gold, gold[:i] + other + gold[i + 1 :]))
        records += [
            (gold, gold.replace(sign, other, 1))
            for sign, other in (("+", "-"), ("<", ">"), ("(", "["), ("x", "y"), ("\\cup", "\\cap"))
            if sign in gold
        ]
    records = [pair for pair in records if not STILL_EQUAL.search(pair[1])]
    assert len(records) > 45
    verdicts = grade_all(
        "math-robust", [{"gold": g, "response": f"\\boxed{{{a}}}"} for g, a in records]
    )
    assert not [pair for pair, v in zip(records, verdicts, strict=True) if v["correct"]]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("4×10⁻⁵", "4\\times 10^{-5}"),
        ("∛8 + √(x+1)", "\\sqrt[3]{8} + \\sqrt{x+1}"),
        ("3½", "3\\frac{1}{2}"),
        ("x₁₂", "x_{12}"),
        ("４２ ٤٢", "42 42"),
        ("λ Δ", "\\lambda  \\Delta "),
        ("naïve Ìdáhùn 答案", "naïve Ìdáhùn 答案"),
    ],
)
def test_unicode_as_latex(text: str, latex: str) -> None:
    assert to_latex(text) == latex


def test_a_task_asks_for_units(tmp_path: Path) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text("extends: math500\ntitle: MATH-500, units\ngrading: {units: strict}\n")
    assert load_task(str(strict)).grading == {"units": "strict"}
    for grading, message in (
        ("{units: exact}", "units: exact: it must be ignore or strict"),
        ("{unit: strict}", "unit: no grader of the task reads it; they read units, "),
    ):
        strict.write_text(f"extends: math500\ngrading: {grading}\n")
        with pytest.raises(ConfigError, match=message):
            load_task(str(strict))


def test_the_command_asks_for_units(capsys, monkeypatch) -> None:
    for grader, units, code, correct in (
        ("math-robust", "strict", 0, False),
        ("math-robust", "ignore", 0, True),
        ("math-paper", "strict", ConfigError.exit_code, None),
    ):
        monkeypatch.setattr(
            "sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"gold": "5 cm", "prediction": "5"}'))
        )
        assert main(["grade", grader, "--units", units]) == code
        out = capsys.readouterr()
        if correct is None:
            assert f"--units strict: {grader} does not read units" in out.err
        else:
            assert json.loads(out.out)["correct"] is correct
