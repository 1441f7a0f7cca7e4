"""Recorded verdicts of the graders' originals, of ../shared/cases; skipped without them. And cases
of our own, in tests/evals/cases: docs/graders.md says how they were written.
"""

import json
import re
from pathlib import Path

import pytest

from adaptsft.evals.graders import figfont, medical, mmlu_prox
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.mathematics import paper, robust

E_NOTATION = re.compile(r"(\d+(?:\.\d+)?)e([+-]?\d+)")


@pytest.fixture(scope="module")
def cases(shared_data: Path):
    return lambda name: json.loads((shared_data.parent / "cases" / f"{name}.json").read_text())[
        "cases"
    ]


def test_figfont(cases) -> None:
    for case in cases("figfont_metric_oracle"):
        verdict = figfont.grade(case)
        assert verdict["exact_match"] == case["exact_match"], case
        assert verdict["jw_paper"] == pytest.approx(case["jw_paper"], abs=1e-12), case
        assert verdict["jw_standard"] == pytest.approx(case["jw_rapidfuzz"], abs=1e-12), case


def test_mmlu_prox(cases) -> None:
    for case in cases("mmlu_prox_extraction"):
        verdict = mmlu_prox.grade(case)
        assert (verdict["correct"], verdict["extracted"]) == (
            case["expected"],
            case["extracted"],
        ), case


def test_medical(cases) -> None:
    for case in cases("medical_mcq_oracle"):
        verdict = medical.grade_paper(case)
        assert (verdict["correct"], verdict["extracted"]) == (
            case["paper_expected"],
            case["paper_extracted"],
        ), case
        assert verdict["unparsed"] == (case["paper_match_type"] == 3), case
        verdict = medical.grade_m1(case)
        assert (verdict["correct"], verdict["extracted"]) == (
            case["m1_expected"],
            case["m1_extracted"],
        ), case


def test_math_paper_on_recorded_verdicts(cases) -> None:
    recorded = cases("math_cross_grader")
    for case, verdict in zip(recorded, grade_all("math-paper", recorded), strict=True):
        assert (verdict["correct"], verdict["extracted"]) == (case["paper"], case["paper_pred"]), (
            case
        )


def test_both_math_graders_on_model_outputs(cases) -> None:
    """Qwen's stored verdicts on 100 problems.

    The paper's grader gives all of them, the robust one all but Qwen's own errors.
    """
    recorded = cases("qwen_math_800")
    for case in recorded:
        verdict = paper.grade(case)
        assert (verdict["correct"], verdict["extracted"]) == (
            case["expected"],
            case["extracted"],
        ), case
    disagree = [case for case in recorded if robust.grade(case)["correct"] != case["expected"]]
    # 10{,}000, which the paper's grader reads as 10, and a time that it strips of all its letters
    assert all("{,}" in case["gold"] or "p.m." in case["gold"] for case in disagree), disagree


def test_math_paper_golds(shared_data: Path) -> None:
    golds = json.loads((shared_data.parent / "cases" / "math_paper_golds.json").read_text())
    for case in (
        case for name in ("math_oai", "olympiadbench", "aime24", "amc23") for case in golds[name]
    ):
        assert paper.normal_form(str(case["raw"])) == case["gold"]
    items = [json.loads(line) for line in (shared_data / "math" / "minerva_math.jsonl").open()]
    for case in golds["minerva_math"]:
        assert paper.extract_answer(items[case["i"]]["solution"], keep_units=True) == case["gold"]


@pytest.mark.parametrize("name", ["math_verify_tests", "lighteval_extractive_tests"])
def test_math_robust_on_the_tests_of_math_verify(cases, name: str) -> None:
    runnable = [case for case in cases(name) if case["math_verify_0_9_0"] is not None]
    wrong = [case for case in runnable if robust.grade(case)["correct"] != case["expected"]]
    assert len(wrong) <= len(runnable) / 100, wrong
    assert all("dubious" in case for case in wrong), wrong


def test_math_robust_on_the_field_cases(cases) -> None:
    """The bar: 95 % of the cases on which readers agree, and of the wrong answers 1 % as right."""
    field = [case for case in cases("math_field") if not case.get("contestable")]
    verdicts = grade_all("math-robust", field)
    missed = [
        case for case, v in zip(field, verdicts, strict=True) if v["correct"] != case["expected"]
    ]
    wrong = [case for case in field if not case["expected"]]
    assert len(missed) <= 0.05 * len(field), missed
    assert sum(not case["expected"] for case in missed) <= 0.01 * len(wrong), missed


def test_math_robust_accepts_every_power_of_ten_of_minerva(shared_data: Path) -> None:
    items = [json.loads(line) for line in (shared_data / "math" / "minerva_math.jsonl").open()]
    golds = [paper.extract_answer(item["solution"], keep_units=True) for item in items]
    powers = [match for gold in golds if (match := E_NOTATION.fullmatch(gold))]
    assert len(powers) == 58
    for power in powers:
        mantissa, exponent = power.groups()
        right, wrong = (
            f"\\boxed{{{mantissa} \\times 10^{{{e}}}}}" for e in (exponent, int(exponent) + 1)
        )
        assert robust.grade({"gold": power[0], "response": right})["correct"], power[0]
        assert not robust.grade({"gold": power[0], "response": wrong})["correct"], power[0]


def test_gsm8k_verdicts(cases) -> None:
    """OpenAI's labels, which compare numbers literally: the robust grader gives the same."""
    for case in cases("gsm8k_labelled_5276"):
        assert (
            robust.grade({"gold": case["gold"], "response": case["response_tail"]})["correct"]
            == case["expected"]
        ), case


def own_cases(name: str) -> list[dict]:
    cases = json.loads((Path(__file__).parent / "cases" / f"{name}.json").read_text())["cases"]
    return [case for case in cases if not case.get("contestable")]


@pytest.mark.parametrize("name", ["math_1", "math_2", "math_3"])
@pytest.mark.nightly
def test_math_robust_on_own_cases(name: str) -> None:
    # what takes its 3 s each is among the field cases
    chosen = [case for case in own_cases(name) if case["family"] != "hang"]
    verdicts = grade_all("math-robust", chosen)
    missed = [c for c, v in zip(chosen, verdicts, strict=True) if v["correct"] != c["expected"]]
    assert not [case for case in missed if not case["expected"]]  # no false positive
    assert len(missed) <= 0.01 * len(chosen), missed


def test_mcq_robust_on_own_cases() -> None:
    chosen = own_cases("mcq")
    verdicts = grade_all("mcq-robust", chosen)
    missed = [
        case
        for case, verdict in zip(chosen, verdicts, strict=True)
        if (verdict["correct"], verdict["extracted"]) != (case["expected"], case["extracted"])
    ]
    assert not [case for case in missed if not case["expected"] and case["extracted"]]
    assert len(missed) <= 0.03 * len(chosen), missed
